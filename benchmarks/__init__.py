"""Measurements: each a module that is run by one command and prints its table."""
