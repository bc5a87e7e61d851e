"""Writing a model as a file for a runtime, one format a file."""
