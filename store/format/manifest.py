"""What the records of a cache say: generations of the catalog, teachers, committed units."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from sys import intern
from typing import Any, cast

from ...errors import DamagedCacheError, NotACacheError, SettingError
from ..io.read_many import read_many
from ..io.storage import Storage
from . import layout
from .catalog import Part, Table
from .corpus_notes import Note
from .layout import MODALITIES, Modality
from .record_fields import Fields, read_fields
from .shard import ArrayLayout
from .views import ViewPolicy

_COUNTED: tuple[Table, ...] = ("files", "samples", "views", "texts")
"""Tables with as many lines for each file, row or text row, in order and without a hole."""

_MOST_SHARD_ROWS = 2**24
_MOST_EMBED_DIM = 2**20
_MOST_LOGIT_SCALE = 700.0  # the exponential of which is a double


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
        return _next_unit(self.num_rows(modality), self.shard_rows)

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


def read_manifest(files: Storage) -> Manifest:
    """Return what the generation records say.

    Raises:
        NotACacheError: there is no cache.json.
        FormatVersionError, DamagedCacheError: a record cannot be used.
    """
    first = _read_record(files, layout.CACHE_RECORD)
    if first is None:
        raise NotACacheError(_why_no_cache(files))
    shard_rows = first.count("shard_rows", least=1, most=_MOST_SHARD_ROWS)
    views = _parse_views(first)
    generations: list[Generation] = []
    free: dict[Modality, int] = dict.fromkeys(MODALITIES, 0)
    record: Fields | None = first
    while record is not None:
        generation = _parse_generation(record, len(generations), free)
        generations.append(generation)
        for modality in MODALITIES:
            if generation.span(modality).count:
                free[modality] = _next_unit(generation.span(modality).end, shard_rows)
        record = _read_record(files, layout.generation_record(len(generations)))
    return Manifest(shard_rows=shard_rows, views=views, generations=tuple(generations))


def read_teachers(files: Storage) -> dict[str, TeacherRecord]:
    """Return the teachers of a cache by name, sorted."""
    teachers: dict[str, TeacherRecord] = {}
    for name in layout.teacher_names(files.names(layout.TEACHERS)):
        record = _read_record(files, layout.teacher_record(name))
        if record is not None:
            teachers[name] = _parse_teacher(record, name)
    return teachers


def read_commits(
    files: Storage, teacher: str, *, shard_rows: int, known: Commits | None = None
) -> Commits:
    """Return a teacher's committed units. Torn records do not count, and are named.

    A billion samples have 122,000 records: each takes some 50 microseconds and 1.4 kB of memory.

    Args:
        files: the cache.
        teacher: its name.
        shard_rows: rows of a unit.
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
            record = read_fields(bytes_read, where=files.where(path))
            attempt = commits.next_attempt[place] - 1
            commits.units[place] = shared.parse_commit(record, (*place, attempt), shard_rows)
        except DamagedCacheError as error:
            commits.damaged.append(str(error))
    return commits


def _read_record(files: Storage, path: str) -> Fields | None:
    try:
        data = files.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return read_fields(data, where=files.where(path))
    except DamagedCacheError as error:
        raise DamagedCacheError(f"{error}; restore it from a backup, or build anew") from None


def _why_no_cache(files: Storage) -> str:
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


def _parse_views(record: Fields) -> ViewPolicy:
    views = record.fields("views")
    try:
        return ViewPolicy(
            num_views=views.count("num_views"),
            seed=views.whole("seed"),
            min_area=views.number("min_area"),
            max_aspect=views.number("max_aspect"),
            flip_probability=views.number("flip_probability"),
        )
    except SettingError as error:
        raise DamagedCacheError(f"{record.where} is damaged: {error}") from None


def _next_unit(end: int, shard_rows: int) -> int:
    """Return the first row of the unit that begins at a row or behind it."""
    return -(-end // shard_rows) * shard_rows


def _parse_span(record: Fields, name: str, free: int) -> Span:
    """Return the rows that a generation adds; ``free`` is the first row behind earlier ones."""
    fields = record.fields(name)
    span = Span(first=fields.count("first"), count=fields.count("count"))
    if span.count and span.first != free:
        fields.refuse("first", f"{free}, the row behind earlier generations")
    return span


def _parse_generation(record: Fields, number: int, free: Mapping[Modality, int]) -> Generation:
    if record.count("generation") != number:
        record.refuse("generation", f"{number}, as its name says")
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
    if "notes" not in record.values:  # of an older program
        return ()
    return tuple(
        Note(
            source=each.text("source"),
            what=each.text("what"),
            count=each.count("count"),
            first=each.text("first"),
            remedy=each.text("remedy"),
        )
        for each in record.entries("notes")
    )


def _parse_part(record: Fields, path: str, described: Mapping[str, Any]) -> Part:
    fields = Fields(described, record.where, f"{path}.")
    return Part(path, cast(Table, fields.text("table")), fields.count("num_rows"), described)


def _parse_source(record: Fields) -> SourceRecord:
    name, kind, location = record.text("name"), record.text("kind"), record.text("location")
    return SourceRecord(
        name=name,
        kind=kind,
        location=location,
        root=record.text("root"),
        fingerprint=record.text("fingerprint"),
        settings=record.mapping("settings"),
    )


def _parse_teacher(record: Fields, name: str) -> TeacherRecord:
    if record.text("name") != name:
        record.refuse("name", f"{name!r}, as its folder says")
    batch_size = record.fields("batch_size")
    return TeacherRecord(
        name=name,
        identity=record.mapping("identity"),
        embed_dim=record.count("embed_dim", least=1, most=_MOST_EMBED_DIM),
        logit_scale=record.number("logit_scale", limit=_MOST_LOGIT_SCALE),
        logit_bias=record.number("logit_bias"),
        batch_size={m: batch_size.count(m, least=1) for m in MODALITIES},
        source=record.text("source"),
        revision=record.text_or_none("revision"),
        generation=record.count("generation"),
        files=record.files(),
    )


class _Shared:
    """Parses unit records, and keeps once what many of them have alike: half of their memory."""

    def __init__(self) -> None:
        self._provenances: dict[str, Mapping[str, Any]] = {}
        self._nothing_rejected: Mapping[int, str] = {}

    def parse_commit(
        self, record: Fields, place: tuple[Modality, int, int], shard_rows: int
    ) -> UnitCommit:
        """Return what a record says; ``place`` is modality, unit and attempt, as its name says."""
        modality, unit, attempt = place
        said = (record.text("modality"), record.count("unit"), record.count("attempt"))
        first, num_rows = record.count("first_row"), record.count("num_rows", most=shard_rows)
        if said != place or first != unit * shard_rows:
            record.refuse("unit", f"{unit} from row {unit * shard_rows}, as its name says")
        provenance = record.mapping("provenance")
        rejected = {
            each.count("row", least=first, most=first + num_rows - 1): intern(each.text("reason"))
            for each in record.entries("rejected")
        }
        return UnitCommit(
            modality=modality,
            unit=unit,
            attempt=attempt,
            num_rows=num_rows,
            rejected=rejected or self._nothing_rejected,
            files={
                path: {intern(name): value for name, value in described.items()}
                for path, described in record.files().items()
            },
            batch_size=record.count("batch_size"),
            provenance=self._provenances.setdefault(repr(provenance), provenance),
        )
