"""A text of our own to train on, for tests."""

TEXT = "".join(f"The {a} asks the {b}: why {c}?\n" for a in ("fox", "owl", "hen", "bee") for b in ("sea", "oak", "sun")
               for c in ("so late", "not sing", "that red hat", "again", "me", "us, of all"))  # 1,800 letters or so
