"""The cache on disk: layout, records, catalog, targets. Needs neither torch nor transformers."""

from .cache import Cache, open_cache

__all__ = ["Cache", "open_cache"]
