"""Tables that hold the images themselves: which column, by its Arrow type, its name and its metadata."""

# pyarrow has no types, so that everything it returns is unknown to a strict checker.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

from ....errors import SourceError
from ....store.io.location import Location
from ..listing import path_below
from ..text import is_missing
from .captions import clean_text
from .columns import (
    IMAGE_NAMES,
    FoundColumns,
    TableColumns,
    check_columns,
    find_columns,
    first_column,
    show_names,
)
from .image_values import PATH_NAMES
from .unread_columns import may_hold_captions

_BYTES_NAMES = ("jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
_IMG2DATASET = {"key", "status", "error_message"}

_OTHER_BYTES = re.compile(
    r"key|sha|md5|hash|embed|feature|vector|audio|video|mask|depth", re.IGNORECASE
)
# Compared by name: the view types are too new for the oldest pyarrow we allow.
_BINARY = ("binary", "large_binary", "binary_view")
_TEXT = ("string", "large_string", "string_view")
_TEXTS = re.compile(r"(large_)?list(_view)?<\w+: (large_)?string(_view)?( not null)?>")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedColumns:
    """The columns of a table that holds its images."""

    image: tuple[str, ...]
    """Names that lead to the bytes: a column, then fields of structs and items of lists."""

    path: tuple[str, ...] | None
    """Names that lead to the path of a file, for rows without bytes (datasets' ``path``)."""

    fields: FoundColumns
    """The others; its image is image[0]."""

    has_bytes: bool = True
    """False where there are paths only."""

    class_names: tuple[str, ...] = ()
    """Names of classes, if the metadata of datasets has them and labels are numbers."""

    unread: tuple[str, ...] = ()
    """Columns of texts that are not read and may be captions."""

    is_img2dataset: bool = False
    """The table says for each row whether it was downloaded."""

    @property
    def member(self) -> str:
        """The image's column with dots, as Sample.member has it."""
        return ".".join(self.image)


def holds_images(schema: Any, wanted: TableColumns) -> bool:
    """Return whether a table with an Arrow schema holds images rather than paths."""
    if _find_image(schema, wanted) is not None:
        return True
    top = wanted.image or first_column(schema.names, IMAGE_NAMES)
    return top is None and any(_leaf(field.type) is not None for field in schema)


def packed_columns(
    schema: Any, wanted: TableColumns, place: Location, *, takes_paths: bool = False
) -> PackedColumns:
    """Return the columns of a table that holds images.

    Args:
        schema: of the file.
        wanted: what the user named.
        place: the file, for messages.
        takes_paths: also accept a column of paths if no column holds bytes.

    Raises:
        SourceError: no column holds images, or a column that the user named is missing.
    """
    image = _find_image(schema, wanted)
    paths = _find_path(schema, wanted) if image is None and takes_paths else None
    column = image or paths
    if column is None:
        raise SourceError(_no_image(schema, wanted, place))
    wanted = replace(wanted, image=column[0])
    check_columns(schema.names, wanted, place)
    fields = find_columns(tuple(schema.names), wanted)
    features = _features(schema)
    is_named = fields.label is not None and _kind(features.get(fields.label)) == "ClassLabel"
    return PackedColumns(
        image=column,
        path=paths if image is None else _path_beside(schema, image),
        has_bytes=image is not None,
        fields=fields,
        class_names=_class_names(features[fields.label]) if is_named and fields.label else (),
        is_img2dataset=set(schema.names) >= _IMG2DATASET,
        unread=may_hold_captions(text_columns(schema), fields, wanted),
    )


def holds_paths(found: Any) -> bool:
    """Return whether a column of this type may hold paths: text, or text in a struct or a list."""
    import pyarrow as pa

    if pa.types.is_dictionary(found) or pa.types.is_list(found) or pa.types.is_large_list(found):
        return holds_paths(found.value_type)
    return str(found) in _TEXT or _path_field(found) is not None


def _path_field(found: Any) -> str | None:
    """Return the name of the field of a struct that is the path of an image."""
    fields = ((name, _field(found, name)) for name in PATH_NAMES)
    return next((name for name, kind in fields if kind is not None and str(kind) in _TEXT), None)


def _find_path(schema: Any, wanted: TableColumns) -> tuple[str, ...] | None:
    """Return the names that lead to the paths of images, in a table without their bytes."""
    column = wanted.image or first_column(schema.names, IMAGE_NAMES)
    if column is None or schema.names.count(column) != 1:
        return None
    kind = schema.field(column).type
    field = _path_field(kind)
    return (column,) if str(kind) in _TEXT else None if field is None else (column, field)


def text_columns(schema: Any) -> list[str]:
    """Return the columns of texts, or of lists of texts."""
    types = ((field.name, str(field.type)) for field in schema)
    return [name for name, each in types if each in _TEXT or _TEXTS.fullmatch(each)]


def _find_image(schema: Any, wanted: TableColumns) -> tuple[str, ...] | None:
    if wanted.image is not None:
        return _follow(schema, wanted.image)
    named = set(wanted.named())
    leaves = {f.name: leaf for f in schema if (leaf := _leaf(f.type)) is not None}
    packed = [name for name in leaves if name not in named]
    features = _features(schema)
    images = [name for name in packed if _kind(features.get(name)) == "Image"]
    found = first_column(images, IMAGE_NAMES) or next(iter(images), None)
    found = found or first_column(packed, (*IMAGE_NAMES, *_BYTES_NAMES))
    found = found or _only_bytes(schema, packed, wanted)
    return None if found is None else (found, *leaves[found])


def _only_bytes(schema: Any, packed: Sequence[str], wanted: TableColumns) -> str | None:
    """Return the only column of bytes of a table without a column of paths, by any name.

    Columns of keys, hashes, sounds and vectors do not count.
    """
    found = find_columns(tuple(schema.names), wanted)
    others = set(packed) - {found.key, found.label, found.lang, found.kind}
    plain = [
        f.name for f in schema if str(f.type) in _BINARY or _field(f.type, "bytes") is not None
    ]
    free = [name for name in plain if name in others and not _OTHER_BYTES.search(name)]
    is_only = found.image is None and len(free) == 1 == schema.names.count(free[0])
    return free[0] if is_only else None


def _follow(schema: Any, column: str) -> tuple[str, ...] | None:
    """Return the names that lead to the bytes of the column that the user named, with or without dots."""
    for way in _readings(column):
        found = schema.get_all_field_indices(way[0])
        if len(found) != 1:
            continue
        at: Any = schema.field(found[0]).type
        for name in way[1:]:
            at = _field(at, name)
        leaf = _leaf(at) if at is not None else None
        if leaf is not None:
            return (*way, *leaf)
    return None


def _readings(column: str) -> Iterator[tuple[str, ...]]:
    """Yield the meanings of a name: a column of that name, or a path of names with dots."""
    yield (column,)
    if "." in column:
        yield tuple(column.split("."))


def _leaf(found: Any) -> tuple[str, ...] | None:
    """Return the names that lead from a column's type to the bytes of one image; None where there are none.

    Bytes may be of fixed size or in a dictionary, in the field ``bytes`` of a struct, a list of uint8, or in
    a list of which each row should have one. The names are those of a Parquet file's own schema.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(found):
        return () if str(found.value_type) in _BINARY else None
    if str(found) in _BINARY or pa.types.is_fixed_size_binary(found):
        return ()
    if not (pa.types.is_list(found) or pa.types.is_large_list(found)):
        inner = _field(found, "bytes")
        return ("bytes",) if inner is not None and str(inner) in _BINARY else None
    inner = () if pa.types.is_uint8(found.value_type) else _leaf(found.value_type)
    return None if inner is None else ("list", found.value_field.name, *inner)


def _field(found: Any, name: str) -> Any:
    """Return the type of a struct's field; None where it is no struct, or has not one such field."""
    import pyarrow as pa

    if found is None or not pa.types.is_struct(found):
        return None
    index = found.get_field_index(name)  # -1: none, or several
    return found.field(index).type if index >= 0 else None


def _path_beside(schema: Any, image: tuple[str, ...]) -> tuple[str, ...] | None:
    if len(image) < 2:
        return None
    at: Any = schema.field(image[0]).type
    for name in image[1:-1]:
        at = _field(at, name)  # None in a list
    text = _field(at, "path")
    return (*image[:-1], "path") if text is not None and str(text) in _TEXT else None


def _no_image(schema: Any, wanted: TableColumns, place: Location) -> str:
    shown = show_names([f"{field.name} ({str(field.type)[:40]})" for field in schema])
    expected = "binary, or a struct with 'bytes'"
    if wanted.image is not None:
        return f"{place}: {wanted.image!r} is no column of images ({expected}); it has {shown}"
    names = ", ".join((*IMAGE_NAMES[:1], *_BYTES_NAMES))
    return (
        f"{place} has no column of images ({expected}) named {names} or the like, it has {shown}; "
        "name it with --image-column"
    )


def _features(schema: Any) -> Mapping[str, object]:
    """Return the features by column that datasets writes into a schema; empty without."""
    written = (schema.metadata or {}).get(b"huggingface")
    try:
        found: Any = json.loads(written) if written is not None else None
    except (ValueError, RecursionError):
        return {}
    for name in ("info", "features"):
        found = cast(dict[str, Any], found).get(name) if isinstance(found, dict) else None
    return cast(dict[str, object], found) if isinstance(found, dict) else {}


def _kind(feature: object) -> object:
    return cast(dict[str, object], feature).get("_type") if isinstance(feature, dict) else None


def _class_names(feature: object) -> tuple[str, ...]:
    names: object = cast(dict[str, object], feature).get("names")
    if not isinstance(names, Sequence) or isinstance(names, str):
        return ()
    texts = [name for name in cast(Sequence[object], names) if isinstance(name, str)]
    return tuple(texts) if len(texts) == len(cast(Sequence[object], names)) else ()


def image_file(root: Location, folder: PurePosixPath, written: object) -> str:
    """Return the file of a row without bytes, relative to the root of the source.

    Args:
        root: of the source.
        folder: of the table, relative to root: what the path is relative to.
        written: the row's path.

    Raises:
        ValueError: there is no path, or no valid one; the message is a reason.
    """
    if is_missing(written):
        raise ValueError("the image has no bytes and no path")
    text = clean_text(written, "the image path")
    return path_below(root, text if Path(text).is_absolute() else _below(folder, text))


def _below(folder: PurePosixPath, text: str) -> str:
    return text if "://" in text or folder == PurePosixPath(".") else f"{folder.as_posix()}/{text}"
