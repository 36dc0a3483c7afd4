"""Options of a corpus that is planned, which build and import share."""

from typing import TYPE_CHECKING, Annotated, Any

from .options import CORPUS, HARDWARE, flag, option

if TYPE_CHECKING:
    from ..precompute.sources import TableColumns


def _column(help: str) -> Any:
    return option("COLUMN", help, CORPUS, default="by its usual names")


ImageColumn = Annotated[str | None, _column("Table column of image paths or bytes.")]
CaptionColumn = Annotated[
    list[str] | None,
    option(
        "COLUMN[=KIND]",
        "Table column of captions, and their kind, such as re_caption=synthetic. Repeatable.",
        CORPUS,
        default="by its usual names",
    ),
]
KeyColumn = Annotated[
    str | None, _column("Table column of keys; '' takes none, as of a corpus without one.")
]
LangColumn = Annotated[str | None, _column("Table column of caption languages.")]
KindColumn = Annotated[str | None, _column("Table column of caption kinds.")]
LabelColumn = Annotated[str | None, _column("Table column of class labels.")]
Encoding = Annotated[
    str | None,
    option(
        "NAME",
        "Text encoding of tables, such as latin-1.",
        CORPUS,
        default="UTF-8, or UTF-16 with a byte order mark",
    ),
]
CaptionEnding = Annotated[
    list[str] | None,
    option(
        "ENDING",
        "Ending of the caption files (or tar members) beside images, such as .cap or syn.json. "
        "Repeatable: all that are given are read.",
        CORPUS,
        default="the first in use of .json, .txt, .caption, .cap, .text, .caption.txt, .jpg.txt",
    ),
]
PrefixKeys = Annotated[
    bool,
    flag(
        "--prefix-keys",
        "Put the file name before each key; for keys that are unique only within a file.",
        CORPUS,
    ),
]
ShardRows = Annotated[
    int | None,
    option(
        "N",
        "Rows in one unit, the most work that a crash can lose.",
        HARDWARE,
        default="as the cache, else 16384 / VIEWS",
    ),
]


def table_columns(
    image: str | None,
    captions: list[str] | None,
    key: str | None,
    lang: str | None = None,
    label: str | None = None,
    encoding: str | None = None,
    kind: str | None = None,
) -> "TableColumns | None":
    """Return the columns that were named; None if none was."""
    from ..precompute.sources import TableColumns

    if key is None and not any((image, captions, lang, label, encoding, kind)):
        return None
    return TableColumns(
        image=image,
        captions=tuple(captions) if captions else None,
        key=key,
        lang=lang,
        kind=kind,
        label=label,
        encoding=encoding,
    )
