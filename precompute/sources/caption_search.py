"""Where captions of a corpus are searched, in words, for corpora without any."""

from .base import Source
from .fields.caption_endings import SETTING

_BESIDE = ".json, .txt, .caption, .cap, .text, .caption.txt or .jpg.txt"
_COLUMNS = (
    "columns with the word caption or text, sentence, alt, title, description, comment, prompt, ..."
)


def describe_caption_search(source: Source) -> str:
    """Return where captions of a source were searched, and which option chooses other places."""
    chosen: list[str] = source.settings.get(SETTING, [])
    endings = ", ".join(f".{ending}" for ending in chosen) if chosen else _BESIDE
    if source.kind == "folder":
        where = "beside each or in a folder captions/; metadata.csv, .jsonl, .parquet"
        return f"{endings} {where}; --caption-ending takes other endings"
    if source.kind == "img2dataset":
        return f"{endings} beside each; --caption-ending takes other endings"
    if source.kind == "webdataset":
        return f"members {endings} of each; --caption-ending takes other endings"
    if "captions" in source.settings:
        return f"columns {', '.join(map(repr, source.settings['captions']))}"
    return f"{_COLUMNS}; --caption-column takes others"
