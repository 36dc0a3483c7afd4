"""Data that the project makes for itself: a generated corpus, and small models that learn it."""
