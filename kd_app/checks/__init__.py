"""The checks of kd-check; each yields findings about a run before it starts."""
