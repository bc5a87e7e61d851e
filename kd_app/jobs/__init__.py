"""The work of each command; ``kd_app/commands`` has the command lines."""
