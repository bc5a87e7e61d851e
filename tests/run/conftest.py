"""Fixtures of these tests."""

from tests.digits_workspace import digits, models, out

__all__ = ["digits", "models", "out"]
