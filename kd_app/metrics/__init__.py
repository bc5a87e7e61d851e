"""Teacher-versus-student measures as torchmetrics, intervals of every figure, and the
verdict.
"""
