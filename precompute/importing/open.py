"""Opening embeddings by their location: the files that are there decide the kind."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import polars as pl

from ...errors import SourceError
from ...store.format.layout import Modality
from ...store.io.location import Location
from ...store.io.requests import is_folder, kind_of
from ..sources.globs import expand, is_pattern
from ..sources.listing import scan_folder
from ..sources.readers.parquet_rows import open_parquet
from ..sources.readers.tar_names import is_tar
from .arrays import ArrayEmbeddings, ArrayPart
from .config import EmbeddingColumns
from .datacompdr import DataCompDR
from .embeddings import Embeddings
from .files import SourceFiles
from .vectors import (
    ParquetVectors,
    check_vectors,
    is_vectors,
    load_npz,
    open_npy,
    parquet_names,
    read_names,
)

_KEYS = ("key", "__key__", "uid", "id", "image_path", "filename", "path", "url")
_TEXTS = ("text", "caption")
_IMAGE_VECTORS = ("embedding", "image_embedding", "image_emb", "img_emb", "vector")
_TEXT_VECTORS = ("text_embedding", "text_emb", "caption_embedding")
_NAME_ENDINGS = (".parquet", ".txt", ".json")
_NPZ_BYTES = 2**36  # 64 GiB, in memory: larger ones are better .npy files, which are mapped
_EXPECTED = (
    "expected Parquet with a key and an embedding, .npy with keys beside it (.parquet, .txt or .json of "
    "the same name), .npz, a folder of clip-retrieval (img_emb, metadata), or tars of DataCompDR"
)


def open_embeddings(
    location: Location, columns: EmbeddingColumns, files: SourceFiles
) -> Embeddings:
    """Return the embeddings at a location; read no vectors.

    Raises:
        SourceError: nothing is there, or nothing that can be imported.
    """
    if is_pattern(location):
        found = expand(location)
    elif is_folder(location):
        names = _names(location)
        if "img_emb" in names or "text_emb" in names:
            return _clip_retrieval(location, columns, files)
        found = [location / name for name in names]
    elif kind_of(location) is None:
        raise SourceError(f"there is no {location}; {_EXPECTED}")
    else:
        found = [location]
    tars = [file for file in found if is_tar(file.name)]
    if tars:
        return DataCompDR(location, tars)
    return _arrays(location, found, columns, files, has_folder=len(found) > 1)


def _names(folder: Location) -> list[str]:
    try:
        with scan_folder(str(folder)) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SourceError(f"{folder} cannot be read ({error.strerror})") from error


def _arrays(
    location: Location,
    found: Sequence[Location],
    columns: EmbeddingColumns,
    files: SourceFiles,
    *,
    has_folder: bool,
) -> ArrayEmbeddings:
    parts: list[ArrayPart] = []
    arrays = [file for file in found if file.suffix in (".npy", ".npz")]
    stems = {file.stem for file in arrays if file.suffix == ".npy"}
    for file in arrays:
        if file.suffix == ".npz":
            parts += _npz_part(file, files)
        elif file.stem.removesuffix("_keys").removesuffix(".keys") in stems - {file.stem}:
            continue  # the names of another array
        else:
            parts.append(_npy_part(file, columns, files))
    for file in found:
        if file.suffix == ".parquet" and file.stem not in stems:
            parts += _parquet_parts(file, columns, files, is_only=not has_folder)
    if not parts:
        raise SourceError(f"{location} holds no embeddings; {_EXPECTED}")
    kind = "parquet" if not arrays else "numpy"
    return ArrayEmbeddings(location, kind, parts, files)


# -- Parquet


def _parquet_parts(
    file: Location, columns: EmbeddingColumns, files: SourceFiles, *, is_only: bool
) -> list[ArrayPart]:
    """Return the images and the texts of a Parquet file; none if it has no vectors and is not alone."""
    opened = _open_parquet(file, files)
    schema = opened.schema_arrow
    lists = [field.name for field in schema if is_vectors(field.type)]
    key = _choose(columns.key, schema.names, _KEYS, file)
    text = _choose(columns.text, schema.names, _TEXTS, file)
    vectors = _choose(columns.embedding, lists, _IMAGE_VECTORS, file)
    text_vectors = _choose(columns.text_embedding, lists, _TEXT_VECTORS, file)
    if key is None and text is not None and text_vectors is None:
        vectors, text_vectors = None, vectors
    view = _choose(columns.view, schema.names, ("view",), file)
    parts: list[ArrayPart] = []
    if vectors is not None and key is not None:
        parts.append(_parquet_part(file, opened, "image", key, view, vectors, files))
    if text_vectors is not None and text is not None:
        parts.append(_parquet_part(file, opened, "text", text, None, text_vectors, files))
    if not parts and is_only:
        lacks = "vectors" if vectors is None and text_vectors is None else "keys or texts"
        raise SourceError(
            f"{file} has no column of {lacks}; its columns are {', '.join(schema.names)[:200]}; name them "
            "with --embedding-column and --embedding-key, or --text-embedding-column and --text-column"
        )
    return parts


def _open_parquet(file: Location, files: SourceFiles) -> Any:
    path = files.path(file)
    try:
        return open_parquet(path)
    except SourceError as error:  # of a copy: name the object
        raise SourceError(str(error).replace(str(path), str(file))) from None


def _parquet_part(
    file: Location,
    opened: Any,
    modality: Modality,
    name: str,
    view: str | None,
    vectors: str,
    files: SourceFiles,
) -> ArrayPart:
    column = ParquetVectors(file, opened, vectors, files)
    return ArrayPart(
        where=f"{file}: column {vectors!r}",
        modality=modality,
        names=partial(parquet_names, file, opened, name, view),
        shape=column.shape,
        open_values=column.unpack,
        files=(file,),
        columns=(vectors, name, view),
    )


def _choose(
    asked: str | None, names: Sequence[str], usual: Sequence[str], file: Location
) -> str | None:
    if asked is None:
        return next((name for name in usual if name in names), None)
    if asked not in names:
        raise SourceError(
            f"{file} has no column {asked!r} that fits; those that do are {', '.join(names)[:200]}"
        )
    return asked


# -- numpy


def _npy_part(file: Location, columns: EmbeddingColumns, files: SourceFiles) -> ArrayPart:
    values = open_npy(file, files)
    candidates = [file.with_suffix(ending) for ending in _NAME_ENDINGS]
    candidates += [file.with_name(f"{file.stem}{end}.npy") for end in ("_keys", ".keys")]
    names_file = next((each for each in candidates if kind_of(each) == "file"), None)
    if names_file is None:
        raise SourceError(
            f"{file} has no keys beside it; write them to {candidates[1].name}, one a line, in the order "
            "of the rows"
        )
    if names_file.suffix == ".parquet":
        return _named_by_parquet(file, values, names_file, columns, files)
    names = read_names(files.path(names_file), names_file)
    assert names is not None
    return _named((file, names_file), values, names, _modality_of(file))


def _npz_part(file: Location, files: SourceFiles) -> Iterator[ArrayPart]:
    arrays = load_npz(files.path(file), str(file), most_bytes=_NPZ_BYTES)
    vectors = [name for name, array in arrays.items() if array.ndim == 2]
    names = [name for name, array in arrays.items() if array.ndim == 1]
    if len(vectors) != 1 or len(names) != 1 or arrays[names[0]].dtype.kind not in "Uiu":
        shown = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise SourceError(
            f"{file} holds {shown[:200] or 'no array'}; expected one array (rows, width) of vectors and one "
            "(rows,) of keys"
        )
    values = check_vectors(arrays[vectors[0]], f"{file}: {vectors[0]}")
    keys = pl.Series("name", arrays[names[0]].astype(str).tolist(), pl.String)
    yield _named((file,), values, keys, _modality_of(file))


def _modality_of(file: Location) -> Modality:
    return "text" if file.stem.lower().startswith(("text", "caption")) else "image"


def _named(
    files: tuple[Location, ...], values: Any, names: pl.Series, modality: Modality
) -> ArrayPart:
    frame = pl.DataFrame({"name": names}).with_columns(view=pl.lit(0, pl.Int64))
    return ArrayPart(
        where=str(files[0]),
        modality=modality,
        names=lambda: iter([frame]),
        shape=values.shape,
        open_values=lambda: values,
        files=files,
    )


def _named_by_parquet(
    file: Location,
    values: Any,
    table: Location,
    columns: EmbeddingColumns,
    files: SourceFiles,
    modality: Modality | None = None,
) -> ArrayPart:
    """Return an array whose names are a column of a table: keys of images, or else texts."""
    opened = _open_parquet(table, files)
    names = opened.schema_arrow.names
    key = None if modality == "text" else _choose(columns.key, names, _KEYS, table)
    name = key or (None if modality == "image" else _choose(columns.text, names, _TEXTS, table))
    if name is None:
        wanted = {"image": "key", "text": "caption"}.get(modality or "", "key or text")
        raise SourceError(
            f"{table} has no column of a {wanted}; its columns are {', '.join(names)[:200]}; name it with "
            "--embedding-key or --text-column"
        )
    view = None if key is None else _choose(columns.view, names, ("view",), table)
    return ArrayPart(
        where=str(file),
        modality="text" if key is None else "image",
        names=partial(parquet_names, table, opened, name, view),
        shape=values.shape,
        open_values=lambda: values,
        files=(file, table),
        columns=(name, view),
    )


# -- clip-retrieval
# Source: clip_retrieval/clip_inference/writer.py of rom1504/clip-retrieval: img_emb/img_emb_N.npy,
# text_emb/text_emb_N.npy and metadata/metadata_N.parquet of one partition have the same rows.


def _clip_retrieval(
    folder: Location, columns: EmbeddingColumns, files: SourceFiles
) -> ArrayEmbeddings:
    columns = replace(columns, text=columns.text or "caption")
    parts: list[ArrayPart] = []
    modalities: tuple[tuple[Modality, str], ...] = (("image", "img_emb"), ("text", "text_emb"))
    for modality, name in modalities:
        for each in _names(folder / name):
            number = re.fullmatch(rf"{name}_(\d+)\.npy", each)
            if number is None:
                continue
            file = folder / name / each
            table = folder / "metadata" / f"metadata_{number[1]}.parquet"
            if kind_of(table) is None:
                raise SourceError(
                    f"{file} has no {table.name} in {table.parent}, which names its rows; run "
                    "clip-retrieval inference again for this partition"
                )
            values = open_npy(file, files)
            parts.append(_named_by_parquet(file, values, table, columns, files, modality))
    if not parts:
        raise SourceError(f"{folder} holds no img_emb/img_emb_0.npy nor text_emb/text_emb_0.npy")
    return ArrayEmbeddings(folder, "clip-retrieval", parts, files)
