"""Evaluation on published benchmarks and other corpora from local files, without a cache."""
