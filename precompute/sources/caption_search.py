"""Where the captions of a corpus are looked for, in words: said where none was found."""

from .base import Source
from .fields.caption_endings import SETTING

_BESIDE = ".json, .txt, .caption, .cap, .text, .caption.txt or .jpg.txt"
_COLUMNS = (
    "columns with the word caption or text, sentence, alt, title, description, comment, prompt, ..."
)


def captions_looked_for(source: Source) -> str:
    """Return where the captions of a source were looked for, and how to choose other places."""
    told: list[str] = source.settings.get(SETTING, [])
    endings = ", ".join(f".{ending}" for ending in told) if told else _BESIDE
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
