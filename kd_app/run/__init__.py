"""What one run is made of: its specification, its trainings, its folder, its results."""
