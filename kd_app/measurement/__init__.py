"""Measurement of the models of a run, of exported files and of cascades."""
