"""The guided tour, and its data: a generated corpus and small models."""
