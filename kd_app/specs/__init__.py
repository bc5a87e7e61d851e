"""Configuration of a run, validated: what it is made of, and what ``auto`` chooses."""
