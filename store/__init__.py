"""The cache on disk: layout, records, catalog, targets. Needs neither torch nor transformers.

People use ``siglip2_cache.open_cache``. Nothing is imported here: decoding processes want store.pixels
without what reads Parquet and Zarr.
"""
