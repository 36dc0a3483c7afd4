"""Reports on a cache: neighbours, duplicates, mismatched captions, outliers, agreement of teachers."""
