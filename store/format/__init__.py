"""The format on disk: paths, records, manifest, catalog, views, shards, the commit of files."""
