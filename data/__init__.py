"""Where the training texts come from."""
