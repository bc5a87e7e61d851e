"""Optimizers, with learning rates by layer and by schedule."""
