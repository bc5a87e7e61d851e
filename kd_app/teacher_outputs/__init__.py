"""Outputs of a teacher: computed live, or read from a cache."""
