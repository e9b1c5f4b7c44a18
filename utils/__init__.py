"""Shared helpers, which import nothing else of this project."""
