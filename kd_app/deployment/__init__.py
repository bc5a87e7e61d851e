"""Measuring what ships: what a model answers, and how fast."""
