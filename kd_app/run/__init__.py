"""The parts of one run: specification, trainings, measurement, folder and results."""
