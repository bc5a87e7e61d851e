"""What a training does between its steps: checkpoints, averages, progress, curves."""
