"""Building a cache: from a corpus and a teacher to committed targets."""
