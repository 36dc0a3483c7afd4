"""Run the SigLIP 2 teacher once over a corpus and train students from its cached embeddings.

The public names are loaded on first use, so that ``import siglip2_cache`` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import CacheError as CacheError
    from .store.cache import Cache as Cache
    from .store.cache import open_cache as open_cache

__version__ = "0.1.0"
__all__ = ["Cache", "CacheError", "__version__", "open_cache"]

_HOMES = {"Cache": ".store.cache", "CacheError": ".errors", "open_cache": ".store.cache"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
