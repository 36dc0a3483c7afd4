"""Names in a corpus: images, folders of storage systems, folders that are classes."""

import re
from collections.abc import Collection

USUAL_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings that messages name."""

IMAGE_ENDINGS = (
    *USUAL_ENDINGS,
    *(".avif", ".jp2", ".j2k", ".jpx", ".jfif", ".jpe", ".pjpeg", ".pjp", ".mpo", ".apng"),
    *(".dib", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jpg_large", ".jpg_orig", ".png_large", ".png_orig"),
)
"""Endings of images, preferred ones first. The bytes decide the format."""

_SYSTEM_FOLDERS = {
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin"),
    *("recycler", "system volume information", "lost+found", "__macosx", ".appledouble"),
}
_TRASH = re.compile(r"\.trash(es|-\d+)?")

_SPLIT = re.compile(
    r"(train|training|trainval|val|valid|validation|dev|test|testing|eval|evaluation|holdout)"
    r"([-_]?\d{2,4})?"
)
_CONTAINERS = {
    "images",
    "image",
    "imgs",
    "img",
    "jpegimages",
    "jpegs",
    "jpg",
    "data",
    "files",
    "all",
}
_BESIDE_IMAGES = {"annotations", "labels", "captions", "texts", "text", "meta", "metadata", "docs"}


def is_system_folder(name: str) -> bool:
    """Return whether a folder belongs to a storage system: thumbnails, snapshots, a recycle bin."""
    lower = name.lower()
    return lower in _SYSTEM_FOLDERS or _TRASH.fullmatch(lower) is not None


def class_of(path: str, top_folders: Collection[str]) -> str | None:
    """Return the class that an image's path below its corpus names; None where it names none.

    It is the first folder that is neither a split (``train``, ``val2017``) nor a mere container
    (``images``). An image directly in ``train`` has the class train if there are folders of other classes
    beside it, such as bus and car.

    Args:
        path: relative to the corpus, forward slashes.
        top_folders: all folders at the top of the corpus.
    """
    folders = path.split("/")[:-1]
    if len(folders) == 1 and _is_split(folders[0]):
        is_one_of_classes = any(
            _is_class(name) and name.lower() not in _BESIDE_IMAGES for name in top_folders
        )
        return folders[0] if is_one_of_classes else None
    return next(filter(_is_class, folders), None)


def _is_split(name: str) -> bool:
    return _SPLIT.fullmatch(name.lower()) is not None


def _is_class(name: str) -> bool:
    return not (_is_split(name) or name.lower() in _CONTAINERS)
