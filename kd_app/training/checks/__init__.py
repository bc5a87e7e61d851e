"""Is the teacher sound, is the set-up sound, what will it cost: asked before a run. A
check is a function of a `Subject` that gives findings.
"""
