"""Evaluation of a student against a cache."""
