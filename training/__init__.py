"""Training: the loop, what it optimises with, how its results are measured and kept."""
