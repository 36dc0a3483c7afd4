"""Which column of a table is the image, which are captions: by their usual names, or as named."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from ....errors import SettingError, SourceError
from ....store.io.location import Location
from .caption_columns import CaptionColumn, caption_columns, named_columns, split_kind, squash

# Names are compared without case, spaces, hyphens and underscores: "File Name" is filename.
# The first name in each tuple that a table has is used. Names of captions: caption_columns.py.
IMAGE_NAMES = (
    *("image", "image_path", "path", "file", "filename", "filepath", "img", "img_path"),
    *("image_file", "image_filename", "image_name", "img_file", "img_name"),
    *("image_base64", "img_base64", "image_b64", "base64", "b64"),
)
KEY_NAMES = ("key", "id", "image_id", "uid")
LANG_NAMES = ("lang", "language", "langs", "languages")
KIND_NAMES = ("caption_kind", "caption_kinds")
LABEL_NAMES = ("label", "class", "class_name", "category")

_MAX_SHOWN = 160
_FILE_NAME = re.compile(r".+\.(jpe?g|png|webp|gif|bmp|tiff?|avif|heic)(#[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumns:
    """Columns of a table, named by the user. None: found by its usual names."""

    image: str | None = None
    """Path of the image, absolute or relative to the table's folder; in Parquet files also the bytes of
    the image, with dots between nested names (``image.bytes``)."""

    captions: tuple[str, ...] | None = None
    """Captions, each as NAME or NAME=KIND. A language at the end of a name (``caption_de``) is theirs; () for
    no captions."""

    key: str | None = None
    """Key of the sample; ``""`` for no column, also where one has a usual name. Without one the key is the
    path of the image without its extension, or the number of the row."""

    lang: str | None = None
    """Language of the captions: one, or a list as long as the captions."""

    kind: str | None = None
    """Kind of the captions, such as ``alt`` or ``synthetic``: one, or a list as long as the captions."""

    label: str | None = None
    """Class of the image."""

    encoding: str | None = None
    """Encoding of a text table. None: UTF-8, or UTF-16 with a byte order mark."""

    def __post_init__(self) -> None:
        if self.encoding is not None:
            check_encoding(self.encoding)
        if isinstance(self.captions, str):  # "caption" would be seven columns
            raise SettingError(f"columns.captions must be a tuple of names, got {self.captions!r}")
        for named in self.captions or ():
            name, kind = split_kind(named)
            if not name or kind == "":
                raise SettingError(
                    f"caption column {named!r} is not COLUMN or COLUMN=KIND, such as caption=synthetic"
                )

    def named(self) -> tuple[str, ...]:
        """Return every column that the user named."""
        single = (self.image, self.key, self.lang, self.kind, self.label)
        captions = (split_kind(named)[0] for named in self.captions or ())
        return (*(name for name in single if name), *captions)

    def to_settings(self) -> dict[str, Any]:
        """Return the columns that the user named, as JSON values."""
        named = {name: value for name, value in asdict(self).items() if value is not None}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in named.items()}


def check_encoding(encoding: str) -> None:
    """Refuse an unknown encoding.

    Raises:
        SettingError: Python has no such encoding of text.
    """
    try:
        "".encode(encoding)
    except (LookupError, ValueError):
        raise SettingError(
            f"encoding {encoding[:40]!r} is unknown to Python; use one such as latin-1, cp1252, utf-16"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundColumns:
    """The columns of one table, or of one row of a .jsonl, that have a meaning."""

    image: str | None
    captions: tuple[CaptionColumn, ...]

    key: str | None
    lang: str | None
    kind: str | None
    label: str | None

    def names(self) -> list[str]:
        """Return every column to be read, each once."""
        single = (self.image, self.key, self.lang, self.kind, self.label)
        captions = (column.name for column in self.captions)
        return list(dict.fromkeys(name for name in (*single, *captions) if name is not None))


@lru_cache(maxsize=256)  # once for a table; .jsonl rows come in few shapes
def find_columns(names: tuple[str, ...], wanted: TableColumns) -> FoundColumns:
    """Return which columns have which meaning. Columns that the user named are used if they exist."""
    chosen = set(wanted.named())
    free = [name for name in names if name not in chosen]

    def one(named: str | None, usual: Sequence[str]) -> str | None:
        if named is not None:
            return named if named in names else None
        return first_column(free, usual)

    kind = one(wanted.kind, KIND_NAMES)
    if wanted.captions is None:
        captions = caption_columns([name for name in free if name != kind])
    else:
        captions = named_columns(wanted.captions, names)
    return FoundColumns(
        image=one(wanted.image, IMAGE_NAMES),
        captions=captions,
        key=None if wanted.key == "" else one(wanted.key, KEY_NAMES),
        lang=one(wanted.lang, LANG_NAMES),
        kind=kind,
        label=one(wanted.label, LABEL_NAMES),
    )


def first_column(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """Return the column with the first usual name that exists, or None."""
    by_name = {squash(name): name for name in reversed(names)}
    return next((by_name[squash(name)] for name in usual if squash(name) in by_name), None)


def check_columns(names: Sequence[str], wanted: TableColumns, table: Location) -> None:
    """Refuse a table without a column that the user named, or without any column of images.

    Raises:
        SourceError: the message names the existing columns.
    """
    for name in wanted.named():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SourceError(f"{table} has no column {name!r}, it has {show_names(names)}{hint}")
    found = find_columns(tuple(names), wanted)
    if found.image is None:
        raise SourceError(
            f"{table} has no column of images, it has {show_names(names)}; {_image_advice(names)}"
        )
    doubled = next((name for name in found.names() if list(names).count(name) > 1), None)
    if doubled is not None:
        raise SourceError(f"{table} has two columns named {doubled!r}; rename one of them")


def _image_advice(names: Sequence[str]) -> str:
    """Return the remedy for a table without a known column of images."""
    if any(_FILE_NAME.fullmatch(name) for name in names):
        return (
            "that looks like a row, not like names: number the columns, such as --image-column 1 "
            "--caption-column 2"
        )
    url = next((name for name in names if squash(name).endswith(("url", "urls"))), None)
    if url is not None:
        return (
            f"if {url[:40]!r} holds URLs, download them with img2dataset and build from what it writes; if "
            f"paths, use --image-column {url[:40]}"
        )
    return (
        f"expected one named {', '.join(IMAGE_NAMES[:3])} or the like: rename it, or name it with "
        "--image-column (by number in a .csv or .tsv without a header)"
    )


def show_names(names: Sequence[str]) -> str:
    """Return column names for a message: quoted, as many as fit into some 160 characters."""
    shown: list[str] = []
    for name in names:
        shown.append(repr(name[:60]))
        if sum(map(len, shown)) > _MAX_SHOWN:
            break
    num_more = len(names) - len(shown)
    return (", ".join(shown) or "none") + (f" and {num_more} more" if num_more else "")
