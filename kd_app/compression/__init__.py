"""From a finished run's student to a smaller one: an ordered list of steps, each of
which says what it cost.
"""
