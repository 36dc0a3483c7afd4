"""The manifest of a cache: the generations of its catalog, with their parts, sources and units."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from ...errors import DamagedCacheError, NotACacheError, SettingError
from ..io.storage import Storage
from . import layout
from .augmentation import AugmentationPolicy
from .catalog import Part, Table
from .corpus_notes import Note
from .layout import MODALITIES, Modality
from .patch_encoding import CELL
from .record_fields import Fields, read_record
from .row_encoding import FLOAT16, RowEncoding
from .shard import ArrayLayout
from .teacher_record import PatchSettings
from .views import ViewPolicy

_DENSE_TABLES: tuple[Table, ...] = ("files", "samples", "views", "texts")
"""Tables with the same number of lines for each file, row or text row, in order and without gaps."""

_MAX_SHARD_ROWS = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Consecutive rows of one modality."""

    first: int
    count: int

    @property
    def end(self) -> int:
        """The row after the last."""
        return self.first + self.count

    def overlaps(self, other: "Span") -> bool:
        """Return whether both contain a row."""
        return self.first < other.end and other.first < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """One corpus of the cache."""

    name: str
    """Namespace of its keys; empty for none."""

    kind: str
    location: str
    """Absolute path or URL that the user named."""

    root: str
    """Absolute folder or URL that the paths of its files are relative to."""

    fingerprint: str
    """Hash of the state of the corpus when it was planned; if it is equal now, there is nothing to plan."""

    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings of the user, such as column names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One plan: the first one, or a later one that appended samples."""

    number: int
    format_version: int
    """Format version of its record."""

    rows: Span
    text_rows: Span
    parts: tuple[Part, ...]
    sources: tuple[SourceRecord, ...]
    """Every source of the cache after this plan."""

    digest: str
    """SHA-256 over the parts of this generation and all earlier ones."""

    num_new_captions: int
    num_problems: int
    prompts_fingerprint: str
    notes: tuple[Note, ...] = ()
    """What the sources of the cache contain that was not used, or lack, after this plan."""

    def span(self, modality: Modality) -> Span:
        """Return the rows that this generation added."""
        return self.rows if modality == "image" else self.text_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Rows that are embedded, written and committed together."""

    modality: Modality
    number: int
    rows: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The catalog of a cache, as its generation records describe it."""

    shard_rows: int
    views: ViewPolicy
    generations: tuple[Generation, ...]
    _indexes: dict[Table, "_PartIndex"] = field(
        default_factory=dict[Table, "_PartIndex"], init=False, repr=False, compare=False
    )
    """Made when the parts with some rows of a table are first requested."""

    @property
    def latest(self) -> Generation:
        """The latest generation."""
        return self.generations[-1]

    @property
    def sources(self) -> tuple[SourceRecord, ...]:
        """Every source of the cache."""
        return self.latest.sources

    def as_of(self, generation: int) -> "Manifest":
        """Return the manifest as it was when a generation was the latest."""
        return replace(self, generations=self.generations[: generation + 1])

    def count(self, modality: Modality) -> int:
        """Return the number of samples or unique texts, without gaps."""
        return sum(g.span(modality).count for g in self.generations)

    def num_rows(self, modality: Modality) -> int:
        """Return the length of the arrays: one more than the last planned row."""
        return max(
            (g.span(modality).end for g in self.generations if g.span(modality).count), default=0
        )

    def next_free_row(self, modality: Modality) -> int:
        """Return the first row of the next generation, which is the first of a unit."""
        return _next_unit_row(self.num_rows(modality), self.shard_rows)

    def units(self, modality: Modality) -> Iterator[Unit]:
        """Yield the units of a modality in order."""
        for generation in self.generations:
            span = generation.span(modality)
            for first in range(span.first, span.end, self.shard_rows):
                count = min(self.shard_rows, span.end - first)
                yield Unit(
                    modality=modality,
                    number=first // self.shard_rows,
                    rows=Span(first=first, count=count),
                )

    def parts(self, table: Table, among: Span | None = None) -> list[Part]:
        """Return the parts of a table in row order: all, or only those with some rows.

        Args:
            table: the table.
            among: rows of ``samples`` and ``views``, text rows of ``texts``, or numbers of ``files``. All
                parts of other tables are returned: no record says which rows a part has.
        """
        if among is None or table not in _DENSE_TABLES:
            return [p for g in self.generations for p in g.parts if p.table == table]
        if table not in self._indexes:
            self._indexes[table] = _PartIndex(list(self._spans(table)))
        return self._indexes[table].find(among)

    def _spans(self, table: Table) -> Iterator[tuple[Part, Span]]:
        """Yield each part of a table with its rows, counted from the lines of the parts before it."""
        lines_each = self.views.num_views if table == "views" else 1
        next_file = 0
        for generation in self.generations:
            firsts = {"files": next_file, "texts": generation.text_rows.first}
            first, line = firsts.get(table, generation.rows.first), 0
            for part in generation.parts:
                if part.table == table:
                    begin, line = line, line + part.num_rows
                    rows = range(begin // lines_each, -(-line // lines_each))
                    yield part, Span(first=first + rows.start, count=len(rows))
            next_file += line

    def array_layout(
        self, modality: Modality, embed_dim: int, encoding: RowEncoding = FLOAT16
    ) -> ArrayLayout:
        """Return the layout of a teacher's array."""
        return ArrayLayout(
            modality=modality,
            num_rows=self.num_rows(modality),
            num_views=self.views.num_views if modality == "image" else 1,
            embed_dim=embed_dim,
            encoding=encoding,
            shard_rows=self.shard_rows,
        )

    def patch_layout(self, patches: PatchSettings) -> ArrayLayout:
        """Return the layout of a teacher's array of patch targets."""
        return replace(self.array_layout("image", patches.dim, CELL), num_cells=patches.num_cells)

    def layouts(
        self, embed_dim: int, encoding: RowEncoding, patches: PatchSettings | None
    ) -> list[ArrayLayout]:
        """Return the layouts of all arrays of a teacher; those of one modality share their units."""
        found = [self.array_layout(modality, embed_dim, encoding) for modality in MODALITIES]
        return found if patches is None else [*found, self.patch_layout(patches)]


class _PartIndex:
    """The parts of a table by their rows, ascending."""

    def __init__(self, spans: list[tuple[Part, Span]]) -> None:
        self._spans = spans
        self._firsts = [span.first for _, span in spans]
        self._ends = [span.end for _, span in spans]

    def find(self, among: Span) -> list[Part]:
        """Return the parts with some of these rows, in order."""
        near = self._spans[
            bisect_right(self._ends, among.first) : bisect_left(self._firsts, among.end)
        ]
        return [part for part, span in near if span.overlaps(among)]


def read_manifest(files: Storage) -> Manifest:
    """Return the manifest of a cache.

    Raises:
        NotACacheError: there is no cache.json.
        FormatVersionError, DamagedCacheError: a record cannot be read.
    """
    first = read_record(files, layout.CACHE_RECORD)
    if first is None:
        raise NotACacheError(_why_no_cache(files))
    shard_rows = first.count("shard_rows", least=1, most=_MAX_SHARD_ROWS)
    views = _parse_views(first)
    generations: list[Generation] = []
    free: dict[Modality, int] = dict.fromkeys(MODALITIES, 0)
    record: Fields | None = first
    while record is not None:
        generation = _parse_generation(record, len(generations), free)
        generations.append(generation)
        for modality in MODALITIES:
            if generation.span(modality).count:
                free[modality] = _next_unit_row(generation.span(modality).end, shard_rows)
        record = read_record(files, layout.generation_record(len(generations)))
    return Manifest(shard_rows=shard_rows, views=views, generations=tuple(generations))


def _why_no_cache(files: Storage) -> str:
    root, kind = files.root, files.root_kind()
    if kind == "missing":
        return f"no cache at {root}: there is no such folder; create one with siglip2-cache build"
    if kind == "file":
        return f"no cache at {root}: it is a file; name the folder that contains cache.json"
    if files.names(layout.CATALOG):
        return f"{root} has no cache.json: its plan is unfinished; run the same build again"
    nested = [name for name in files.names("") if files.exists(f"{name}/{layout.CACHE_RECORD}")]
    hint = f"did you mean {root / nested[0]}?" if nested else "create one with siglip2-cache build"
    return f"no cache at {root}: it contains no cache.json; {hint}"


def _parse_views(record: Fields) -> ViewPolicy:
    views = record.fields("views")
    try:
        augmentation = AugmentationPolicy()
        if "augmentation" in views.values:
            given = views.fields("augmentation")
            names = [each.name for each in fields(AugmentationPolicy)]
            augmentation = AugmentationPolicy(**{name: given.number(name) for name in names})
        return ViewPolicy(
            num_views=views.count("num_views"),
            seed=views.whole("seed"),
            min_area=views.number("min_area"),
            max_aspect=views.number("max_aspect"),
            flip_probability=views.number("flip_probability"),
            augmentation=augmentation,
        )
    except SettingError as error:
        raise DamagedCacheError(f"{record.where} is damaged: {error}") from None


def _next_unit_row(end: int, shard_rows: int) -> int:
    """Return the first row of the first unit that begins at or after a row."""
    return -(-end // shard_rows) * shard_rows


def _parse_span(record: Fields, name: str, free: int) -> Span:
    """Return the rows that a generation adds; ``free`` is the first row after earlier generations."""
    fields = record.fields(name)
    span = Span(first=fields.count("first"), count=fields.count("count"))
    if span.count and span.first != free:
        fields.refuse("first", f"{free}, the row after earlier generations")
    return span


def _parse_generation(record: Fields, number: int, free: Mapping[Modality, int]) -> Generation:
    if record.count("generation") != number:
        record.refuse("generation", f"{number}, as in its file name")
    return Generation(
        number=number,
        format_version=record.count("format_version"),
        rows=_parse_span(record, "rows", free["image"]),
        text_rows=_parse_span(record, "text_rows", free["text"]),
        parts=tuple(_parse_part(record, path, each) for path, each in record.files().items()),
        sources=tuple(map(_parse_source, record.entries("sources"))),
        digest=record.text("digest"),
        num_new_captions=record.count("num_captions"),
        num_problems=record.count("num_problems"),
        prompts_fingerprint=record.text("prompts_fingerprint"),
        notes=_parse_notes(record),
    )


def _parse_notes(record: Fields) -> tuple[Note, ...]:
    if "notes" not in record.values:  # written by an earlier release
        return ()
    texts = ("source", "what", "first", "remedy")
    return tuple(
        # They are for people: what an earlier release wrote with NUL does not make a record damaged.
        Note(
            count=each.count("count"),
            **{name: str(each.values.get(name)).replace("\0", "\\0") for name in texts},
        )
        for each in record.entries("notes")
    )


def _parse_part(record: Fields, path: str, description: Mapping[str, Any]) -> Part:
    fields = Fields(description, record.where, f"{path}.")
    return Part(path, cast(Table, fields.text("table")), fields.count("num_rows"), description)


def _parse_source(record: Fields) -> SourceRecord:
    return SourceRecord(
        name=record.text("name"),
        kind=record.text("kind"),
        location=record.text("location"),
        root=record.text("root"),
        fingerprint=record.text("fingerprint"),
        settings=record.mapping("settings"),
    )
