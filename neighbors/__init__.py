"""Looking at a cache: what is near what, what is doubled, mismatched, far from everything."""
