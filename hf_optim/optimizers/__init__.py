"""One file an optimizer; the file's stem is its name."""
