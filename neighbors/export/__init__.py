"""Embeddings of a cache as files for other tools."""
