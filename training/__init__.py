"""Training: the loop, what it optimizes with, how its results are measured and kept."""
