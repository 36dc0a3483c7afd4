"""Nearest neighbours of targets: exact search, and faiss indexes."""
