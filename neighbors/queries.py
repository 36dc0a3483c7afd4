"""Queries of a cache: keys, rows, texts and pictures, and their embeddings.

Embeddings that are in the cache are read from it; only a new text or a new picture needs the teacher.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import DamagedCacheError, RowUnavailableError, SettingError
from ..images.image_bytes import ImageLocation, read_image_bytes
from ..images.parquet_cells import ReadError
from ..images.pixels import sha256_of_pixels
from ..store.cache import Cache
from ..store.format.layout import Modality
from ..store.search.exact import has_direction
from .items import items_of
from .report import Caption, Item

if TYPE_CHECKING:
    from ..precompute.teacher.reload import LiveTeacher

QueryKind = Literal["key", "row", "text", "image"]
QUERY_KINDS: tuple[QueryKind, ...] = ("key", "row", "text", "image")


@dataclass(frozen=True, slots=True)
class Query:
    """One query as the user gave it."""

    kind: QueryKind
    value: str | int
    """Key, row, text, or path of a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedQuery:
    """One query with its embedding."""

    item: Item
    embedding_D: NDArray[np.float16]
    own_row: int
    """Row, or text_row, of the item itself; -1 if it is not in the cache."""


def read_queries(path: Path) -> list[Query]:
    """Return the queries of a file: one text a line, or in a .jsonl objects with key, row, text or image.

    Paths of pictures are relative to the file.

    Raises:
        SettingError: the file cannot be read or is empty, or a line is not a query.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingError(f"queries {path} cannot be read: {why}") from None
    is_jsonl = path.suffix.lower() == ".jsonl"
    queries = [
        _parse_query(line.strip(), f"{path} line {number}", path.parent)
        if is_jsonl
        else Query("text", line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not queries:
        raise SettingError(
            f"queries {path} has none; write one text a line, or JSON objects in a .jsonl"
        )
    return queries


def _parse_query(line: str, where: str, folder: Path) -> Query:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    fields = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    named: list[QueryKind] = [kind for kind in QUERY_KINDS if kind in fields]
    if len(named) == 1:
        kind = named[0]
        value = fields[kind]
        if kind == "row" and isinstance(value, int) and not isinstance(value, bool):
            return Query(kind, value)
        if kind != "row" and isinstance(value, str) and value.strip():
            return Query(
                kind, str(folder / os.path.expanduser(value)) if kind == "image" else value
            )
    raise SettingError(
        f'{where} is not a query: {line[:80]!r}; write one of {{"key": "..."}}, {{"row": 7}}, '
        '{"text": "..."}, {"image": "a.jpg"}'
    )


@dataclass(slots=True)
class QueryResolver:
    """Finds the embeddings of queries in a cache, and embeds the others with its teacher."""

    cache: Cache
    teacher: str
    view: int = 0
    checkpoint: str | None = None
    device: str = "auto"
    _live: "LiveTeacher | None" = None

    def live_teacher(self) -> "LiveTeacher":
        """Return the teacher of the cache, loaded once.

        Raises:
            CheckpointError: its checkpoint is not found, or damaged.
            SettingError: it is not the one that the cache was made with.
        """
        from ..precompute.teacher.reload import LiveTeacher  # only new queries need torch

        if self._live is None:
            self._live = LiveTeacher(
                self.cache, teacher=self.teacher, checkpoint=self.checkpoint, device=self.device
            )
        return self._live

    def resolve(self, queries: Sequence[Query]) -> list[EmbeddedQuery]:
        """Return the queries in the order asked.

        Raises:
            SettingError: a key, a picture or a text does not exist or cannot be used.
            RowUnavailableError: a row has no embedding; the message says why.
        """
        for query in queries:
            _refuse_unusable(query)
        found: dict[int, EmbeddedQuery] = {}
        stored_rows: list[tuple[Modality, int, dict[int, int]]] = [
            ("image", self.view, self._rows(queries)),
            ("image", 0, self._rows_of_pictures(queries)),  # a given picture is whole
            ("text", 0, self._text_rows(queries)),
        ]
        for modality, view, rows in stored_rows:
            stored = self._stored(modality, set(rows.values()), view)
            for row, query in stored.items():
                if query is None:
                    raise DamagedCacheError(
                        f"{modality} row {row} of {self.cache.root} is stored as zeros or as numbers "
                        "that are not finite; run siglip2-cache verify"
                    )
                found |= {i: query for i, own in rows.items() if own == row}
        left = [i for i in range(len(queries)) if i not in found]
        if left:
            found |= dict(zip(left, self._embed([queries[i] for i in left]), strict=True))
        return [found[i] for i in range(len(queries))]

    def random(self, count: int, seed: int) -> list[EmbeddedQuery]:
        """Return a random sample of images with an embedding, by row."""
        rows = self.cache.image_targets(self.teacher).available_rows()
        chosen = np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False)
        stored = self._stored("image", set(chosen.tolist()), self.view)
        return [query for _, query in sorted(stored.items()) if query is not None]

    def _rows(self, queries: Sequence[Query]) -> dict[int, int]:
        """Return the rows of queries by key or row, by number of the query."""
        rows = {i: int(query.value) for i, query in enumerate(queries) if query.kind == "row"}
        num_rows = len(self.cache.image_targets(self.teacher))
        for row in rows.values():
            if not 0 <= row < num_rows:
                raise RowUnavailableError(
                    f"row {row} is not in {self.cache.root}, which holds rows 0..{num_rows - 1}"
                )
        by_key = {i: str(query.value) for i, query in enumerate(queries) if query.kind == "key"}
        if by_key:
            row_of = self._rows_of_keys(by_key.values())
            rows |= {i: row_of[key] for i, key in by_key.items()}
        return rows

    def _rows_of_keys(self, keys: Iterable[str]) -> dict[str, int]:
        wanted = sorted(set(keys))
        samples = self.cache.samples()
        lines = samples.filter(pl.col("key").is_in(wanted)).select("key", "row").collect()
        row_of = dict(lines.iter_rows())
        for key in wanted:
            if key not in row_of:
                part = Path(key).stem  # keys of folders have no ending
                near = samples.filter(pl.col("key").str.contains(part, literal=True)).head(3)
                names = ", ".join(repr(name) for name in near.collect()["key"])
                hint = f"; did you mean {names}?" if names else ""
                raise SettingError(f"no sample of {self.cache.root} has the key {key!r}{hint}")
        return row_of

    def _rows_of_pictures(self, queries: Sequence[Query]) -> dict[int, int]:
        """Return the rows of queries by a picture that the teacher saw, by number of the query."""
        digest_of: dict[int, bytes] = {}
        for i, query in enumerate(queries):
            if query.kind == "image":
                file = Path(str(query.value))
                try:
                    digest_of[i] = sha256_of_pixels(read_image_bytes(ImageLocation(path=file)))
                except ReadError as error:
                    raise SettingError(f"picture {file}: {error}") from None
        if not digest_of:
            return {}
        row_of = rows_of_sha256(self.cache, self.teacher, set(digest_of.values()))
        return {i: row_of[sha256] for i, sha256 in digest_of.items() if sha256 in row_of}

    def _text_rows(self, queries: Sequence[Query]) -> dict[int, int]:
        """Return the text_rows of queries by a text with an embedding, by number of the query."""
        texts = {
            i: str(query.value).strip() for i, query in enumerate(queries) if query.kind == "text"
        }
        if not all(texts.values()):
            raise SettingError("a text of a query is empty")
        lines = self.cache.texts().filter(pl.col("text").is_in(sorted(set(texts.values()))))
        row_of = dict(lines.select("text", "text_row").collect().iter_rows())
        targets = self.cache.text_targets(self.teacher)
        in_cache = {i: row_of[text] for i, text in texts.items() if text in row_of}
        return {i: row for i, row in in_cache.items() if targets.available([row])[0]}

    def _stored(
        self, modality: Modality, rows: set[int], view: int
    ) -> dict[int, EmbeddedQuery | None]:
        """Return the stored rows; None for one without a direction (zero or not finite)."""
        if not rows:
            return {}
        ordered = sorted(rows)
        targets = self.cache.targets(modality, self.teacher)
        embeddings_BD = targets.read(ordered, view if modality == "image" else None)
        found = items_of(self.cache, modality, rows, view=view)
        return {
            row: EmbeddedQuery(item=found[row], embedding_D=embedding, own_row=row)
            if is_sound
            else None
            for row, embedding, is_sound in zip(
                ordered, embeddings_BD, has_direction(embeddings_BD), strict=True
            )
        }

    def _embed(self, queries: Sequence[Query]) -> list[EmbeddedQuery]:
        live = self.live_teacher()
        texts = [str(query.value).strip() for query in queries if query.kind == "text"]
        files = [Path(str(query.value)) for query in queries if query.kind == "image"]
        text_rows = iter(live.embed_texts(texts) if texts else ())
        file_rows = iter(live.embed_pictures(files) if files else ())
        embedded: list[EmbeddedQuery] = []
        for query in queries:
            if query.kind == "text":
                text = str(query.value).strip()
                item, rows = Item(kind="text", captions=(Caption(text),)), text_rows
            else:
                item, rows = Item(kind="image", file=Path(str(query.value))), file_rows
            embedded.append(EmbeddedQuery(item=item, embedding_D=next(rows), own_row=-1))
        return embedded


def _refuse_unusable(query: Query) -> None:
    """Refuse keys and texts that are not UTF-8, and file names with a zero byte."""
    text = str(query.value)
    if query.kind in ("key", "text") and not is_utf8(text):
        raise SettingError(f"{query.kind} {text!r} is not UTF-8")
    if query.kind == "image" and "\0" in text:
        raise SettingError(f"picture {text!r}: a file name cannot hold a zero byte")


def is_utf8(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8: it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def rows_of_sha256(cache: Cache, teacher: str, wanted: set[bytes]) -> dict[bytes, int]:
    """Return the first row with a target for each SHA-256 of a picture's bytes."""
    row_of: dict[bytes, int] = {}
    for unit in sorted(cache.commits(teacher).units_of("image")):
        seen = cache.seen(teacher, unit)
        lines = seen.filter(pl.col("sha256").is_in(sorted(wanted))).select("sha256", "row")
        for sha256, row in lines.iter_rows():
            row_of.setdefault(sha256, row)
    if not row_of:
        return {}
    is_there = cache.image_targets(teacher).available(list(row_of.values()))
    return {
        sha256: row for (sha256, row), there in zip(row_of.items(), is_there, strict=True) if there
    }
