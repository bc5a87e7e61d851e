"""Training of one `TrainingJob`, independent of the run that the job belongs to."""
