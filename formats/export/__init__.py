"""Export to the files of other projects."""
