"""Distill any timm model into any other, prove what was kept, and ship what is small."""

__version__ = "0.1.0"
