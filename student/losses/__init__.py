"""Losses between a student and cached targets, and what they need."""
