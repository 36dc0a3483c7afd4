"""The teacher: its identity, loading it, embedding batches."""
