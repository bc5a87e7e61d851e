"""What each command does, one file each: the place to start reading."""
