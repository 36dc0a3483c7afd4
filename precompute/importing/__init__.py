"""Importing targets: embeddings that another program made, joined to the rows of a cache by key."""
