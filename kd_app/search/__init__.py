"""Hyperparameter search: the study, its space, its trials, and pruning of trials."""
