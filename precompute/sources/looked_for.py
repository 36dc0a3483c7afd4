"""Where the captions of a corpus are looked for, in words: said where none was found."""

from .base import Source
from .caption_columns import CAPTION_NAMES, FALLBACK_CAPTION_NAMES

_USUAL = (*CAPTION_NAMES, *(name for usual in FALLBACK_CAPTION_NAMES for name in usual))
_COLUMNS = f"columns named {', '.join(_USUAL)}, or with the word caption"


def captions_looked_for(source: Source) -> str:
    """Return where the captions of a source were looked for, and how to choose other places."""
    if source.kind in ("folder", "img2dataset"):
        return "NAME.json and NAME.txt beside NAME.jpg"
    if source.kind == "webdataset":
        return "members KEY.json and KEY.txt beside KEY.jpg"
    return f"{_COLUMNS}; --caption-column takes others"
