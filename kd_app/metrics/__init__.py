"""Metrics of models and of model pairs, their intervals, and the verdict."""
