"""The cache on disk: layout, records, catalog, targets. Needs neither torch nor transformers.

The public entry is ``siglip2_cache.open_cache``. Nothing is imported here, so that decoding processes
start without readers of Parquet and Zarr.
"""
