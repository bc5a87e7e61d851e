"""What the ranks of a training share."""
