"""Texts to tokens, and tokens to batches of context windows."""
