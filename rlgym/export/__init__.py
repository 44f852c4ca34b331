"""A trained policy as files: one graph of arrays, and a writer of it for each format."""
