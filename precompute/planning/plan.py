"""Planning: from what the user named to a frozen catalog, or to the news that nothing changed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...errors import NotACacheError, SettingError, SourceError
from ...store.cache import Cache, relocate
from ...store.format import layout
from ...store.format.corpus_notes import Note
from ...store.format.manifest import SourceRecord
from ...store.format.records import Record, sha256_hex
from ...store.format.transaction import Transaction, roll_forward
from ...store.format.views import ViewPolicy
from ...store.io.foreign_files import is_stray
from ...store.io.location import Location, is_url, lies_in, parse_location
from ...store.io.requests import kind_of
from ...store.io.storage import Storage
from ..sources import Source, TableColumns, open_source
from ..sources.fields.caption_endings import SETTING as ENDINGS
from ..sources.fields.caption_endings import parse_endings
from ..sources.globs import is_pattern, is_there
from ..sources.rekeyed import PLAIN, PREFIXED, RULES, RekeyedSource
from .freeze import Freezer
from .part_writer import Findings, Sink
from .prompts import Label, Prompt, by_position, make_prompts, read_labels, read_templates
from .scan import Scanner
from .spill import Scratch

_DEFAULT_UNIT_VIEWS = 16_384
MOST_SHARD_ROWS = 2**24

_SHARDED = {"webdataset", "parquet"}
"""Kinds of which a location may name any number of files of one folder."""

_TELLTALES = "*.parquet and *_stats.json of img2dataset, images beside shards, dataset_info.json"


def check_shard_rows(shard_rows: int | None) -> None:
    """Refuse rows of a unit that cannot be chosen; None is no choice.

    Raises:
        SettingError: not 1 to MOST_SHARD_ROWS.
    """
    if shard_rows is not None and not 1 <= shard_rows <= MOST_SHARD_ROWS:
        raise SettingError(f"shard rows must be 1 to {MOST_SHARD_ROWS:,}, got {shard_rows}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """What to plan. None means: as the cache has it, or the default for a new cache."""

    sources: tuple[str, ...]
    """Each a path or URL, or NAME=PATH; the name is the namespace before its keys."""

    columns: TableColumns | None = None
    """Column names of tables, and of .json files beside images, where the usual names do not fit."""

    caption_endings: tuple[str, ...] | None = None
    """Endings of the files, or members of tars, beside images that hold captions, where those that are
    taken by themselves do not fit: all of these and no others."""

    shard_rows: int | None = None
    """Rows of a unit. Default: 16,384 divided by the views, down to a power of two."""

    num_views: int | None = None
    """Views of each image. Default 1."""

    view_seed: int | None = None
    """Seed of the crops. Default 0."""

    view_min_area: float | None = None
    """Smallest share of the image in a crop. Default 0.25."""

    labels: Path | None = None
    """File of class names for zero-shot prompts; None: the corpus's own labels."""

    templates: Path | None = None
    """File of prompt templates; None: no prompts are planned."""

    corpus_roots: Mapping[str, str] = field(default_factory=dict[str, str])
    """Old folder to new folder, for a corpus that moved."""

    prefix_keys: bool = False
    """Put its file's name before each key, of sources that are new to the cache."""

    changed: Literal["refuse", "skip"] = "refuse"
    """What to do where the corpus gives recorded samples other captions, labels or places: refuse the plan,
    or leave these as they are recorded and plan what is new."""

    def __post_init__(self) -> None:
        if self.changed not in ("refuse", "skip"):
            raise SettingError(f"changed {self.changed!r} is not one of refuse, skip")
        if not self.sources:
            raise SettingError("no source was named; give a folder or a table of images")
        check_shard_rows(self.shard_rows)
        if self.labels is not None and self.templates is None:
            raise SettingError(
                "labels were given without templates; give --templates FILE, one template with {} "
                "a line, for instance: This is a photo of {}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A finished plan."""

    findings: Findings
    """What this plan found; empty where nothing changed since the last."""

    was_scanned: bool
    """False where the sources' fingerprints said that nothing could have changed."""

    num_catalog_bytes: int
    shard_rows: int
    views: ViewPolicy
    first_row: int
    first_text_row: int


class _Counter:
    """A sink that writes nothing and counts: for --dry-run."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def add(self, path: str, data: bytes, **described: Any) -> None:
        self.num_bytes += len(data)


def make_plan(
    config: PlanConfig,
    files: Storage,
    *,
    is_dry_run: bool = False,
    on_scan: Callable[[], None] = lambda: None,
    scratch: Callable[[], Scratch] = Scratch,
    scan_ahead: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Plan:
    """Freeze the corpus into the cache's catalog, or append what is new in it.

    Several processes may plan one cache at once: one of them publishes, the others adopt it.

    Args:
        config: what to plan.
        files: the cache's folder, which need not exist.
        is_dry_run: write nothing, only count.
        on_scan: called before the sources are scanned, which may take long.
        scratch: makes the temporary space of the plan.
        scan_ahead: returns a context that scans for this plan (shared_scan.py).

    Raises:
        SourceError, SettingError: the corpus, or a setting, is refused.
    """
    if not is_dry_run:
        _finish_interrupted(files)
    cache = open_if_planned(files, config.corpus_roots)
    shard_rows, views = _settle(config, cache)
    sources = name_sources(config, cache)
    _refuse_sources_in_cache(sources, files)
    records = _source_records(config, cache, sources)
    prompts_fingerprint = _fingerprint_prompts(config, cache)
    scanner = Scanner(files, keeps=not is_dry_run)
    if cache and _is_current(cache, records, prompts_fingerprint):
        if not is_dry_run:
            scanner.clear()  # a plan that was killed when it had been committed could not
        return recorded_plan(cache)
    prompts = _read_prompts(config)
    on_scan()
    generation = len(cache.manifest.generations) if cache else 0
    counter = _Counter()
    transaction = Transaction(files, layout.generation_record(generation))
    sink: Sink = counter if is_dry_run else transaction
    with scratch() as space:
        freezer = Freezer(
            cache=cache,
            views=views,
            sink=sink,
            scratch=space,
            skips_changed=config.changed == "skip",
            has_prefixes=all(PREFIXED in source.settings for _, source in sources),
        )
        try:
            with scan_ahead():
                freezer.scan(sources, scanner)
            made, note = prompts(sorted(freezer.labels))
            freezer.add_prompts(made, note)
            findings = freezer.freeze()
        except BaseException:
            transaction.abandon()
            raise
    if not is_dry_run:
        fields = _record_fields(cache, generation, freezer, findings, transaction)
        fields |= {
            "sources": [asdict(record) for record in records],
            "prompts_fingerprint": prompts_fingerprint,
            "notes": [asdict(note) for note in _all_notes(cache, sources, findings.notes)],
        }
        if generation == 0:
            fields |= {"shard_rows": shard_rows, "views": views.to_record()}
        is_ours = transaction.commit(fields)
        scanner.clear()
        if not is_ours:
            return make_plan(config, files, on_scan=on_scan, scratch=scratch, scan_ahead=scan_ahead)
    described = transaction.described.values()
    return Plan(
        findings=findings,
        was_scanned=True,
        num_catalog_bytes=counter.num_bytes + sum(d["num_bytes"] for d in described),
        shard_rows=shard_rows,
        views=views,
        first_row=freezer.first_row,
        first_text_row=freezer.first_text_row,
    )


def find_plan(config: PlanConfig, files: Storage) -> Plan | None:
    """Return the plan that a cache has, or None where the sources are not planned as they are now.

    Raises:
        SourceError, SettingError: the corpus, or a setting, is refused.
    """
    cache = open_if_planned(files, config.corpus_roots)
    if cache is None:
        return None
    _settle(config, cache)
    records = _source_records(config, cache, name_sources(config, cache))
    is_current = _is_current(cache, records, _fingerprint_prompts(config, cache))
    return recorded_plan(cache) if is_current else None


def open_if_planned(files: Storage, corpus_roots: Mapping[str, str]) -> Cache | None:
    """Return the cache in a folder, or None where none was planned yet.

    Raises:
        SettingError: the folder holds something else.
    """
    try:
        return Cache(files.root, corpus_roots=corpus_roots)
    except NotACacheError:
        _refuse_foreign_folder(files)
        return None


def _refuse_foreign_folder(files: Storage) -> None:
    if files.root_kind() == "file":
        raise SettingError(f"{files.root} is a file; name a folder for the cache")
    ours = (layout.CATALOG, f"{layout.CACHE_RECORD}.", ".")
    names = [name for name in files.names("") if not is_stray(name)]
    foreign = [name for name in names if not name.startswith(ours)]
    if foreign:
        raise SettingError(
            f"{files.root} is not empty and holds no cache ({foreign[0]} is there); "
            "name an empty or a new folder for the cache"
        )


def _finish_interrupted(files: Storage) -> None:
    generation = 0
    if files.root_kind() != "folder":  # nothing yet, or something else that is refused later
        return
    while roll_forward(files, layout.generation_record(generation)):
        generation += 1


def _settle(config: PlanConfig, cache: Cache | None) -> tuple[int, ViewPolicy]:
    """Return (shard_rows, views): what was asked, else what the cache has, else the defaults.

    Raises:
        SettingError: what was asked differs from what the cache has.
    """
    asked = {
        "num_views": config.num_views,
        "seed": config.view_seed,
        "min_area": config.view_min_area,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    views = replace(cache.view_policy if cache else ViewPolicy(), **given)
    if cache is None:
        return config.shard_rows or default_shard_rows(views.num_views), views
    old = {"shard rows": cache.shard_rows, **_name_views(cache.view_policy)}
    new = {"shard rows": config.shard_rows or cache.shard_rows, **_name_views(views)}
    for name, value in new.items():
        if value != old[name]:
            raise SettingError(
                f"{name} is {old[name]} in {cache.root} and {value} was asked; it is fixed for a "
                "cache: leave the option out, or build a new cache"
            )
    return cache.shard_rows, cache.view_policy


def default_shard_rows(num_views: int) -> int:
    """Return the rows of a unit where nobody chose: 16,384 views, and a power of two."""
    return 2 ** ((_DEFAULT_UNIT_VIEWS // num_views).bit_length() - 1)


def _name_views(views: ViewPolicy) -> dict[str, Any]:
    return {
        "views": views.num_views,
        "view seed": views.seed,
        "view min area": views.min_area,
    }


def name_sources(config: PlanConfig, cache: Cache | None) -> list[tuple[str, Source]]:
    """Return (namespace, source) in the order given.

    A source that the cache knows keeps its name. A new one is called as the user says; else it needs
    no name where it is the only one, and otherwise takes the name of its folder or file.
    """
    known = {
        str(relocate(record.location, config.corpus_roots)): record
        for record in (cache.manifest.sources if cache else ())
    }
    by_real_path = {_real_path(where): where for where in known}
    named: list[tuple[str, Source]] = []
    for argument in config.sources:
        asked, path = _split_name(argument)
        source = open_source(path)
        # Another path to a known corpus (a link, a mount) is that corpus, not a second one.
        where = by_real_path.get(_real_path(str(source.location)))
        if where is not None:
            source = open_source(where)
        record = known.get(str(source.location))
        if record is not None and record.kind != source.kind:
            raise SettingError(
                f"{source.location} was planned as {record.kind} and now looks like {source.kind}, "
                "which gives its images other keys; put back what is gone or take away what has come "
                f"({_TELLTALES}), or build a new cache"
            )
        columns, endings = _choices(config, record)
        if columns is not None or endings is not None:
            source = open_source(source.location, columns=columns, caption_endings=endings)
        source = _rekeyed(source, config, record)
        name = record.name if record else asked
        if asked is not None and name != asked:
            raise SettingError(
                f"{source.location} is called {name!r} in {files_root(cache)}, not {asked!r}; "
                "its keys were frozen under that name"
            )
        if name is None:
            _refuse_moved(source, known)
            _refuse_other_files(source, known, config.corpus_roots)
            is_only = len(config.sources) == 1 and not known
            named_by = source.root if is_pattern(source.location) else source.location
            name = "" if is_only else named_by.stem or str(named_by).strip("/").rpartition("/")[2]
        named.append((name, source))
    _refuse_unused_endings(config, named)
    _refuse_shared_names(named, {record.name: where for where, record in known.items()})
    return named


def _real_path(where: str) -> str:
    """Return what is the same for all paths to a place; a URL is its own."""
    return where if is_url(where) else os.path.realpath(where)


def _rekeyed(source: Source, config: PlanConfig, record: SourceRecord | None) -> Source:
    """Return the source with keys by the rules that it was planned with; a new one, with those that hold now.

    Raises:
        SettingError: prefixes were asked for, and the source was planned without.
    """
    if record is not None:
        rules = {name for name in RULES if record.settings.get(name)}
    else:
        rules = {PLAIN} if source.kind == "webdataset" else set[str]()
        rules |= {PREFIXED} if config.prefix_keys else set()
    if config.prefix_keys and PREFIXED not in rules:
        raise SettingError(
            f"the keys of {source.location} were recorded without their files' names; leave out "
            "--prefix-keys, or build a new cache"
        )
    in_order = tuple(name for name in RULES if name in rules)
    return RekeyedSource(source, in_order) if in_order else source


def _choices(
    config: PlanConfig, record: SourceRecord | None
) -> tuple[TableColumns | None, tuple[str, ...] | None]:
    """Return columns and endings of captions: what is asked, else what the source was planned with."""
    named: dict[str, Any] = dict(record.settings) if record else {}
    for rule in RULES:
        named.pop(rule, None)
    recorded = named.pop(ENDINGS, None)
    asked = None if config.caption_endings is None else parse_endings(config.caption_endings)
    endings = asked or (None if recorded is None else tuple(recorded))
    if "captions" in named:
        named["captions"] = tuple(named["captions"])
    return config.columns or (TableColumns(**named) if named else None), endings


def _refuse_unused_endings(config: PlanConfig, named: Sequence[tuple[str, Source]]) -> None:
    if config.caption_endings and not any(ENDINGS in source.settings for _, source in named):
        raise SettingError(
            f"--caption-ending {config.caption_endings[0]} is for folders of images and for tars, and "
            f"{named[0][1].location} is neither; leave it out, or choose columns with --caption-column"
        )


def files_root(cache: Cache | None) -> str:
    """Return a cache's folder for a message."""
    return str(cache.root) if cache else "the cache"


def _refuse_moved(source: Source, known: Mapping[str, SourceRecord]) -> None:
    """Refuse a new source without a name while a known one is gone: its samples would come twice."""
    gone = [where for where in known if not is_there(parse_location(where))]
    if gone:
        old = next((where for where in gone if Path(where).name == source.location.name), gone[0])
        raise SettingError(
            f"{source.location} is new to the cache, whose source {old} is no longer there; if the "
            f"corpus moved, say --corpus-root {old}={source.location}; if this is another one, name "
            f"it with NAME={source.location}"
        )


def _refuse_other_files(
    source: Source, known: Mapping[str, SourceRecord], corpus_roots: Mapping[str, str]
) -> None:
    """Refuse other files of a folder of shards as a new source without a name: ``{000..123}.tar`` that
    was ``{000..122}.tar`` is the same corpus, and its samples would come twice.

    Two single files are two sources: a shell makes such of an unquoted pattern.
    """
    if source.kind not in _SHARDED:
        return
    for where, record in known.items():
        root = relocate(record.root, corpus_roots)
        if record.kind != source.kind or root != source.root:
            continue
        was_file, is_file = (
            _is_one_file(place) for place in (parse_location(where), source.location)
        )
        if was_file and is_file:
            continue
        begin = f"{source.location} is new to the cache, which has {where} of the same folder; "
        if was_file:
            raise SettingError(
                f"{begin}name the files one by one as before (a pattern without quotes), new ones too; "
                f"or, if it is another corpus, name it with NAME={source.location}"
            )
        raise SettingError(
            f"{begin}if it is that corpus with other shards, say --corpus-root "
            f"'{where}={source.location}'; if it is another one, name it with NAME={source.location}"
        )


def _is_one_file(location: Location) -> bool:
    return not is_pattern(location) and kind_of(location) == "file"


def _refuse_shared_names(named: Sequence[tuple[str, Source]], known: Mapping[str, str]) -> None:
    places = dict(known)
    given: set[str] = set()
    for name, source in named:
        location = str(source.location)
        real_path = _real_path(location)  # a link to it is the same corpus
        if real_path in given:
            raise SettingError(f"the source {location} was given twice")
        if name in places and places[name] != location:
            moved = f", or, if the corpus moved, say --corpus-root {places[name]}={location}"
            raise SettingError(
                f"two sources are called {name!r}: {places[name]} and {location}; name this one "
                f"otherwise with NAME={location}{moved if name in known else ''}"
            )
        given.add(real_path)
        places[name] = location


def _refuse_sources_in_cache(sources: Sequence[tuple[str, Source]], files: Storage) -> None:
    for _, source in sources:
        if lies_in(source.location, files.root):
            raise SettingError(
                f"the source {source.location} lies in the folder of the cache, {files.root}, which "
                "is to hold nothing else; name another folder for the cache, or move the corpus"
            )


def _split_name(argument: str) -> tuple[str | None, str]:
    name, separator, path = argument.partition("=")
    if not separator or "/" in name or Path(argument).exists():
        return None, argument
    if not name.strip():
        raise SettingError(f"source {argument!r} has an empty name; write NAME=PATH or only PATH")
    return name, path


def _source_records(
    config: PlanConfig, cache: Cache | None, sources: Sequence[tuple[str, Source]]
) -> list[SourceRecord]:
    """Return a record of every source: those given now as they are, others as the cache has them."""
    given = {
        name: SourceRecord(
            name=name,
            kind=source.kind,
            location=str(source.location),
            root=str(source.root),
            fingerprint=source.fingerprint(),
            settings=source.settings,
        )
        for name, source in sources
    }
    records = [
        given.pop(record.name, None) or _relocated(record, config.corpus_roots)
        for record in (cache.manifest.sources if cache else ())
    ]
    return [*records, *given.values()]


def _all_notes(
    cache: Cache | None, sources: Sequence[tuple[str, Source]], new: Sequence[Note]
) -> list[Note]:
    """Return the notes of every source: those scanned now as they are, others as the cache has them."""
    scanned = {name for name, _ in sources}
    old = cache.manifest.latest.notes if cache else ()
    return [*(note for note in old if note.source not in scanned), *new]


def _relocated(record: SourceRecord, corpus_roots: Mapping[str, str]) -> SourceRecord:
    return replace(
        record,
        location=str(relocate(record.location, corpus_roots)),
        root=str(relocate(record.root, corpus_roots)),
    )


def _is_current(cache: Cache, records: Sequence[SourceRecord], prompts_fingerprint: str) -> bool:
    latest = cache.manifest.latest
    same = [asdict(r) for r in latest.sources] == [asdict(r) for r in records]
    return same and latest.prompts_fingerprint == prompts_fingerprint


def recorded_plan(cache: Cache) -> Plan:
    """Return the plan of a cache as it is, without a look at its sources."""
    return Plan(
        findings=Findings(),
        was_scanned=False,
        num_catalog_bytes=0,
        shard_rows=cache.shard_rows,
        views=cache.view_policy,
        first_row=cache.manifest.next_free_row("image"),
        first_text_row=cache.manifest.next_free_row("text"),
    )


def _fingerprint_prompts(config: PlanConfig, cache: Cache | None) -> str:
    """Return a hash of the prompt files; without any, what the cache has."""
    if config.templates is None:
        return cache.manifest.latest.prompts_fingerprint if cache else ""
    digest = hashlib.sha256()
    for path in (config.labels, config.templates):
        digest.update(b"\0" if path is None else _read_setting_file(path))
    return digest.hexdigest()


def _read_setting_file(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None


def _read_prompts(config: PlanConfig) -> Callable[[list[str]], tuple[Iterable[Prompt], str]]:
    """Read the prompt files, before the corpus is scanned; return what makes prompts of its labels,
    and says in a line how they were understood, where there is something to say.

    Raises:
        SourceError: a file cannot be read, or a line of it is no label or template.
    """
    if config.templates is None:
        return lambda corpus_labels: ((), "")
    templates = read_templates(config.templates)
    labels = None if config.labels is None else read_labels(config.labels)

    def prompts(corpus_labels: list[str]) -> tuple[Iterable[Prompt], str]:
        if labels is None and not corpus_labels:
            raise SettingError(
                f"templates {config.templates} were given, but the corpus has no labels; "
                "give class names with --labels FILE"
            )
        if labels is None:
            own = [Label(label=name, name=name) for name in corpus_labels]
            return make_prompts(own, templates), ""
        numbered = by_position(labels, corpus_labels)
        note = ""
        if numbered is not labels:
            note = (
                f"the numbers of the corpus are places in {config.labels}: 0 is "
                f"{labels[0].name[:40]!r}, {len({x.label for x in labels}) - 1:,} is {labels[-1].name[:40]!r}"
            )
        return make_prompts(numbered, templates), note

    return prompts


def _record_fields(
    cache: Cache | None,
    generation: int,
    freezer: Freezer,
    findings: Findings,
    transaction: Transaction,
) -> Record:
    described = transaction.described
    lines = [cache.manifest.latest.digest if cache else ""]
    lines += [f"{path} {described[path]['sha256']}" for path in sorted(described)]
    return {
        "generation": generation,
        "rows": {"first": freezer.first_row, "count": findings.num_samples},
        "text_rows": {"first": freezer.first_text_row, "count": findings.num_texts},
        "num_captions": findings.num_captions,
        "num_problems": findings.num_problems,
        "digest": sha256_hex("\n".join(lines).encode()),
    }
