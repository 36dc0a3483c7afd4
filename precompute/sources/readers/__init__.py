"""Readers of file formats: tar, Parquet, Arrow, CSV, lines."""
