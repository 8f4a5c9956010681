"""One paper = one file = one class; the folder is the family, the file stem is the command-line name."""
