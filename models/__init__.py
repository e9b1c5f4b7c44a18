"""Models: what they are made of, the named ones, and how they write."""
