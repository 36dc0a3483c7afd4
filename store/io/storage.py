"""The files of a cache, wherever it lies."""

from upath import UPath

from .download_cache import LocalCopies
from .local import LocalFiles
from .location import Location
from .remote import ObjectFiles

Files = LocalFiles | ObjectFiles


def open_files(root: Location, copies: LocalCopies | None = None) -> Files:
    """Return the files below a folder of this machine or a URL.

    Args:
        root: the cache.
        copies: where objects of a store are copied to that are read as files; None: the default.
    """
    return ObjectFiles(root, copies) if isinstance(root, UPath) else LocalFiles(root)
