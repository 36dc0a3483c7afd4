"""Reading cached targets: memory maps, ranged reads, blocks of rows."""
