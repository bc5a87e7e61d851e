"""Hyperparameter search: the study, its space, its trials, and early ending of trials."""
