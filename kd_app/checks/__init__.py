"""Questions that kd-check asks before a run; each yields findings."""
