"""Exported files, cascades, and measurements of predictions and speed."""
