"""What the records of a cache say: generations of the catalog, teachers, committed units."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from sys import intern
from typing import Any, cast

from ..errors import DamagedCacheError, NotACacheError
from . import layout
from .arrays import ArrayLayout
from .catalog import Part, Table
from .layout import MODALITIES, Modality
from .notes import Note, read_notes
from .read_many import read_many
from .records import Record, decode_record
from .storage import Files
from .views import ViewPolicy

_COUNTED: tuple[Table, ...] = ("files", "samples", "views", "texts")
"""Tables with as many lines for each file, row or text row, in order and without a hole."""


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
        """Say whether both hold a row."""
        return self.first < other.end and other.first < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """One corpus of the cache."""

    name: str
    """Namespace before its keys; empty for none."""

    kind: str
    location: str
    """Absolute path that the user named."""

    root: str
    """Absolute folder that the paths of its files are relative to."""

    fingerprint: str
    """What the corpus looked like when planned; equal now means nothing to plan."""

    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Column names and the like that the user set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One plan: the first, or one that appended samples found later."""

    number: int
    format_version: int
    """That its record was written with."""

    rows: Span
    text_rows: Span
    parts: tuple[Part, ...]
    sources: tuple[SourceRecord, ...]
    """Every source of the cache as this plan left it."""

    digest: str
    """SHA-256 over the parts of this and all earlier generations."""

    num_new_captions: int
    num_problems: int
    prompts_fingerprint: str
    notes: tuple[Note, ...] = ()
    """What every source of the cache holds and was not used, or lacks, as this plan left it."""

    def span(self, modality: Modality) -> Span:
        """Return the rows this generation added."""
        return self.rows if modality == "image" else self.text_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Rows that are embedded, written and committed together."""

    modality: Modality
    number: int
    rows: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The catalog's side of a cache, as its generation records describe it."""

    shard_rows: int
    views: ViewPolicy
    generations: tuple[Generation, ...]
    _of_rows: dict[Table, "_PartsOfRows"] = field(
        default_factory=dict[Table, "_PartsOfRows"], init=False, repr=False, compare=False
    )
    """Made when a table is first asked for the parts of some rows, as every unit does."""

    @property
    def latest(self) -> Generation:
        """The last generation."""
        return self.generations[-1]

    @property
    def sources(self) -> tuple[SourceRecord, ...]:
        """Every source of the cache."""
        return self.latest.sources

    def as_of(self, generation: int) -> "Manifest":
        """Return the manifest as it was when a generation was the latest."""
        return replace(self, generations=self.generations[: generation + 1])

    def count(self, modality: Modality) -> int:
        """Return the number of samples or unique texts; gaps are not among them."""
        return sum(g.span(modality).count for g in self.generations)

    def num_rows(self, modality: Modality) -> int:
        """Return the length of the arrays: one more than the last planned row."""
        return max(
            (g.span(modality).end for g in self.generations if g.span(modality).count), default=0
        )

    def next_free_row(self, modality: Modality) -> int:
        """Return the row where a next generation starts: the next unit's first."""
        return -(-self.num_rows(modality) // self.shard_rows) * self.shard_rows

    def units(self, modality: Modality) -> Iterator[Unit]:
        """Yield the units in order."""
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
        """Return a table's parts in row order: all, or only those that hold some rows.

        Args:
            table: its name.
            among: rows of ``samples`` and ``views``, text rows of ``texts``, or numbers of ``files``. Of
                other tables all parts are returned: nothing says which rows a part holds.
        """
        if among is None or table not in _COUNTED:
            return [p for g in self.generations for p in g.parts if p.table == table]
        if table not in self._of_rows:
            self._of_rows[table] = _PartsOfRows(list(self._spans(table)))
        return self._of_rows[table].of(among)

    def _spans(self, table: Table) -> Iterator[tuple[Part, Span]]:
        """Yield the parts of a table with what each holds, by the lines of those before it."""
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

    def array_layout(self, modality: Modality, embed_dim: int) -> ArrayLayout:
        """Return the layout of a teacher's array."""
        return ArrayLayout(
            modality=modality,
            num_rows=self.num_rows(modality),
            num_views=self.views.num_views if modality == "image" else 1,
            embed_dim=embed_dim,
            shard_rows=self.shard_rows,
        )


class _PartsOfRows:
    """The parts of a table by the rows they hold, which ascend."""

    def __init__(self, spans: list[tuple[Part, Span]]) -> None:
        self._spans = spans
        self._firsts = [span.first for _, span in spans]
        self._ends = [span.end for _, span in spans]

    def of(self, among: Span) -> list[Part]:
        """Return the parts that hold some of these rows, in order."""
        near = self._spans[
            bisect_right(self._ends, among.first) : bisect_left(self._firsts, among.end)
        ]
        return [part for part, span in near if span.overlaps(among)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecord:
    """One teacher of a cache, as its teacher.json describes it."""

    name: str
    identity: Mapping[str, Any]
    embed_dim: int
    logit_scale: float
    """The stored parameter, a logarithm: the temperature of the sigmoid is its exponential."""

    logit_bias: float
    batch_size: Mapping[Modality, int]
    """Images, or texts, in one forward pass; resolved once, so that bytes can be repeated."""

    source: str
    """Path or hub id as the user gave it."""

    revision: str | None
    """Commit of a hub id; None for a local folder."""

    generation: int
    """Generation of the catalog at which it was added; later ones have arrays-<generation> records."""

    files: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCommit:
    """A committed unit."""

    modality: Modality
    unit: int
    attempt: int
    num_rows: int
    rejected: Mapping[int, str]
    """Reason for each rejected row."""

    files: Mapping[str, Mapping[str, Any]]
    batch_size: int
    provenance: Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Commits:
    """A teacher's committed units, and what is wrong with the records that do not count."""

    units: dict[tuple[Modality, int], UnitCommit] = field(
        default_factory=dict[tuple[Modality, int], UnitCommit]
    )
    next_attempt: dict[tuple[Modality, int], int] = field(
        default_factory=dict[tuple[Modality, int], int]
    )
    damaged: list[str] = field(default_factory=list[str])
    """One message a record that is torn or changed and that no higher whole attempt replaces."""

    def of(self, modality: Modality) -> dict[int, UnitCommit]:
        """Return the committed units of one modality by number."""
        return {unit: c for (m, unit), c in self.units.items() if m == modality}

    def rejected(self, modality: Modality) -> Iterator[tuple[int, str]]:
        """Yield (row, reason) of every rejected row, ascending."""
        for _, commit in sorted(self.of(modality).items()):
            yield from sorted(commit.rejected.items())

    def num_rejected(self, modality: Modality) -> int:
        """Return the number of rejected rows."""
        return sum(len(c.rejected) for (m, _), c in self.units.items() if m == modality)


def read_manifest(files: Files) -> Manifest:
    """Return what the generation records say.

    Raises:
        NotACacheError: there is no cache.json.
        FormatVersionError, DamagedCacheError: a record cannot be used.
    """
    first = _read_record(files, layout.CACHE_RECORD)
    if first is None:
        raise NotACacheError(_why_no_cache(files))
    generations = [_parse_generation(first)]
    while (record := _read_record(files, layout.generation_record(len(generations)))) is not None:
        generations.append(_parse_generation(record))
    views = ViewPolicy(**first["views"])
    return Manifest(shard_rows=first["shard_rows"], views=views, generations=tuple(generations))


def read_teachers(files: Files) -> dict[str, TeacherRecord]:
    """Return the teachers of a cache by name, sorted."""
    teachers: dict[str, TeacherRecord] = {}
    for name in files.names(layout.TEACHERS):
        record = _read_record(files, layout.teacher_record(name))
        if record is not None:
            teachers[name] = _parse_teacher(record)
    return teachers


def read_commits(files: Files, teacher: str, *, known: Commits | None = None) -> Commits:
    """Return a teacher's committed units. Torn records do not count, and are named.

    A billion samples have 122,000 records: each takes some 50 microseconds and 1.4 kB of memory.

    Args:
        files: the cache.
        teacher: its name.
        known: what was read before. Records never change, so those it has are not read again.
    """
    commits = Commits()
    folder = layout.commits_folder(teacher)
    for name in files.names(folder):
        parsed = layout.parse_unit_record(name)
        if parsed is not None:
            modality, unit, attempt = parsed
            place = (modality, unit)
            commits.next_attempt[place] = max(commits.next_attempt.get(place, 0), attempt + 1)
    missing: list[tuple[tuple[Modality, int], str]] = []
    for place, next_attempt in sorted(commits.next_attempt.items()):
        found = known.units.get(place) if known else None
        if found is not None and found.attempt == next_attempt - 1:
            commits.units[place] = found
        else:
            missing.append((place, layout.unit_record(teacher, *place, next_attempt - 1)))
    shared = _Shared()
    data = read_many(files.read, [path for _, path in missing])
    for (place, path), bytes_read in zip(missing, data, strict=True):
        try:
            record = decode_record(bytes_read, where=files.where(path))
        except DamagedCacheError as error:
            commits.damaged.append(str(error))
        else:
            commits.units[place] = shared.parse_commit(record)
    return commits


def _read_record(files: Files, path: str) -> Record | None:
    try:
        data = files.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return decode_record(data, where=files.where(path))
    except DamagedCacheError as error:
        raise DamagedCacheError(f"{error}; restore it from a backup, or build anew") from None


def _why_no_cache(files: Files) -> str:
    root, kind = files.root, files.root_kind()
    if kind == "missing":
        return f"no cache at {root}: there is no such folder; make one with siglip2-cache build"
    if kind == "file":
        return f"no cache at {root}: it is a file; name the folder that holds cache.json"
    if files.names(layout.CATALOG):
        return f"{root} has no cache.json: its plan was not finished; run the same build again"
    nested = [name for name in files.names("") if files.exists(f"{name}/{layout.CACHE_RECORD}")]
    hint = f"; did you mean {root / nested[0]}?" if nested else "; siglip2-cache build makes one"
    return f"no cache at {root}: it holds no cache.json{hint}"


def _parse_span(record: Record) -> Span:
    return Span(first=record["first"], count=record["count"])


def _parse_generation(record: Record) -> Generation:
    return Generation(
        number=record["generation"],
        format_version=record["format_version"],
        rows=_parse_span(record["rows"]),
        text_rows=_parse_span(record["text_rows"]),
        parts=tuple(
            Part(path, cast(Table, described["table"]), described["num_rows"], described)
            for path, described in record["files"].items()
        ),
        sources=tuple(SourceRecord(**source) for source in record["sources"]),
        digest=record["digest"],
        num_new_captions=record["num_captions"],
        num_problems=record["num_problems"],
        prompts_fingerprint=record["prompts_fingerprint"],
        notes=read_notes(record.get("notes", ())),
    )


def _parse_teacher(record: Record) -> TeacherRecord:
    return TeacherRecord(
        name=record["name"],
        identity=record["identity"],
        embed_dim=record["embed_dim"],
        logit_scale=record["logit_scale"],
        logit_bias=record["logit_bias"],
        batch_size={m: record["batch_size"][m] for m in MODALITIES},
        source=record["source"],
        revision=record.get("revision"),
        generation=record["generation"],
        files=record["files"],
    )


class _Shared:
    """Parses unit records, and keeps once what many of them have alike: half of their memory."""

    def __init__(self) -> None:
        self._provenances: dict[str, Mapping[str, Any]] = {}
        self._nothing_rejected: Mapping[int, str] = {}

    def parse_commit(self, record: Record) -> UnitCommit:
        provenance = record["provenance"]
        rejected = {each["row"]: intern(each["reason"]) for each in record["rejected"]}
        return UnitCommit(
            modality=cast(Modality, intern(record["modality"])),
            unit=record["unit"],
            attempt=record["attempt"],
            num_rows=record["num_rows"],
            rejected=rejected or self._nothing_rejected,
            files={
                path: {intern(name): value for name, value in described.items()}
                for path, described in record["files"].items()
            },
            batch_size=record["batch_size"],
            provenance=self._provenances.setdefault(repr(provenance), provenance),
        )
