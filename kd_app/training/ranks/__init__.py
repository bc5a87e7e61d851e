"""Several processes that train one model: how they are started, what they agree on, and
what they share.
"""
