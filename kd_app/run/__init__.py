"""One run: workspace, roles, trainings, plan, folder; finished runs are opened here."""
