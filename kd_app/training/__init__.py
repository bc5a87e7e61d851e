"""The trainer: it knows one `TrainingJob` and nothing about the run that asks for it."""
