"""From a finished run to files that run elsewhere: exporting, predicting, and keeping
the teacher for the hard images.
"""
