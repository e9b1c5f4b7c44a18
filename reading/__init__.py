"""Files to text: text files in any encoding, and tables."""
