"""The report: one page about a cache, or about a run with the cache that it was trained on."""
