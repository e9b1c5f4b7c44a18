"""What everything else may lean on: it imports nothing of this project."""
