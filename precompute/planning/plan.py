"""Planning: scanning the sources into a frozen catalog, or finding that nothing has changed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...errors import NotACacheError, SettingError
from ...store.cache import Cache, refuse_foreign_folder
from ...store.format import layout
from ...store.format.corpus_notes import Note
from ...store.format.manifest import SourceRecord
from ...store.format.records import AUGMENTATION_VERSION, STORED_VIEWS_VERSION, Record, sha256_hex
from ...store.format.transaction import Transaction, roll_forward
from ...store.format.views import ViewPolicy
from ...store.io.location import relocate
from ...store.io.storage import Storage
from ..sources import Source
from ..sources.webdataset import STORED_VIEWS
from .config import PlanConfig, default_shard_rows
from .findings import Findings
from .freeze import Freezer
from .part_writer import Sink
from .prompt_files import fingerprint_prompts, read_prompts
from .scan import Scanner
from .source_names import name_sources, refuse_sources_in_cache
from .spill import Scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A finished plan."""

    findings: Findings
    """What this plan found; empty if nothing has changed since the last one."""

    was_scanned: bool
    """False if the sources' fingerprints are as recorded, so that no scan was needed."""

    num_catalog_bytes: int
    shard_rows: int
    views: ViewPolicy
    first_row: int
    first_text_row: int


class _ByteCounter:
    """A sink that writes nothing and counts bytes: for --dry-run."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def add(self, path: str, data: bytes, **description: Any) -> None:
        self.num_bytes += len(data)


def make_plan(
    config: PlanConfig,
    files: Storage,
    *,
    is_dry_run: bool = False,
    on_scan: Callable[[], None] = lambda: None,
    on_samples: Callable[[int], None] = lambda count: None,
    scratch: Callable[[], Scratch] = Scratch,
    scan_ahead: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Plan:
    """Write the corpus into the cache's catalog, or append what is new in it, and return the plan.

    Several processes may plan one cache at once: one of them publishes its plan, the others use it.

    Args:
        config: settings.
        files: the cache's folder, which need not exist.
        is_dry_run: write nothing, only count.
        on_scan: called before the sources are scanned, which may take long.
        on_samples: called with a number of samples that were scanned since the last call.
        scratch: returns the temporary space of the plan.
        scan_ahead: returns a context that scans for this plan (shared_scan.py).

    Raises:
        SourceError: the corpus is refused.
        SettingError: a setting is refused.
    """
    if not is_dry_run:
        _finish_interrupted(files)
    cache = open_if_planned(files, config.corpus_roots)
    shard_rows, views = _settle(config, cache)
    sources = name_sources(config, cache)
    refuse_sources_in_cache(sources, files)
    records = _source_records(config, cache, sources)
    prompts_fingerprint = fingerprint_prompts(config, cache)
    scanner = Scanner(files, keeps=not is_dry_run)
    if cache and _is_current(cache, records, prompts_fingerprint):
        if not is_dry_run:
            scanner.clear()  # left by a plan that was killed after its commit
        return recorded_plan(cache)
    prompts = read_prompts(config)
    on_scan()
    generation = len(cache.manifest.generations) if cache else 0
    counter = _ByteCounter()
    transaction = Transaction(files, layout.generation_record(generation))
    sink: Sink = counter if is_dry_run else transaction
    with scratch() as space:
        freezer = Freezer(
            cache=cache,
            views=views,
            sink=sink,
            scratch=space,
            skips_changed=config.changed == "skip",
            stored_views={
                name: source.root for name, source in sources if STORED_VIEWS in source.settings
            },
        )
        try:
            with scan_ahead():
                freezer.scan(sources, scanner, on_samples)
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
        if any(STORED_VIEWS in record.settings for record in records):
            fields["format_version"] = STORED_VIEWS_VERSION
        if not views.augmentation.is_none:
            fields["format_version"] = AUGMENTATION_VERSION
        if generation == 0:
            fields |= {"shard_rows": shard_rows, "views": views.to_record()}
        is_ours = transaction.commit(fields)
        scanner.clear()
        if not is_ours:
            return make_plan(
                config,
                files,
                on_scan=on_scan,
                on_samples=on_samples,
                scratch=scratch,
                scan_ahead=scan_ahead,
            )
    descriptions = transaction.descriptions.values()
    return Plan(
        findings=findings,
        was_scanned=True,
        num_catalog_bytes=counter.num_bytes + sum(d["num_bytes"] for d in descriptions),
        shard_rows=shard_rows,
        views=views,
        first_row=freezer.first_row,
        first_text_row=freezer.first_text_row,
    )


def find_plan(config: PlanConfig, files: Storage) -> Plan | None:
    """Return the plan of a cache, or None if the sources have changed or are not planned yet.

    Raises:
        SourceError: the corpus is refused.
        SettingError: a setting is refused.
    """
    cache = open_if_planned(files, config.corpus_roots)
    if cache is None:
        return None
    _settle(config, cache)
    records = _source_records(config, cache, name_sources(config, cache))
    is_current = _is_current(cache, records, fingerprint_prompts(config, cache))
    return recorded_plan(cache) if is_current else None


def open_if_planned(files: Storage, corpus_roots: Mapping[str, str]) -> Cache | None:
    """Return the cache in a folder, or None if none has been planned yet.

    Raises:
        SettingError: the folder holds something else.
    """
    try:
        return Cache(files.root, corpus_roots=corpus_roots)
    except NotACacheError:
        refuse_foreign_folder(files)
        return None


def _finish_interrupted(files: Storage) -> None:
    generation = 0
    if files.root_kind() != "folder":  # nothing yet, or something else that is refused later
        return
    while roll_forward(files, layout.generation_record(generation)):
        generation += 1


def _settle(config: PlanConfig, cache: Cache | None) -> tuple[int, ViewPolicy]:
    """Return (shard_rows, views): as set, else as recorded in the cache, else the defaults.

    Raises:
        SettingError: a setting differs from the cache.
    """
    asked = {
        "num_views": config.num_views,
        "seed": config.view_seed,
        "min_area": config.view_min_area,
        "augmentation": config.augmentation,
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
                f"{name} is {old[name]} in {cache.root} and cannot be changed to {value}; leave the option "
                "out, or build a new cache"
            )
    return cache.shard_rows, cache.view_policy


def _name_views(views: ViewPolicy) -> dict[str, Any]:
    return {
        "views": views.num_views,
        "view seed": views.seed,
        "view min area": views.min_area,
        "augment": str(views.augmentation),
    }


def _source_records(
    config: PlanConfig, cache: Cache | None, sources: Sequence[tuple[str, Source]]
) -> list[SourceRecord]:
    """Return a record of every source: those given, and the others of the cache as recorded."""
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
    """Return the notes of every source: those scanned now, and the others of the cache as recorded."""
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
    """Return the recorded plan of a cache without reading its sources."""
    return Plan(
        findings=Findings(),
        was_scanned=False,
        num_catalog_bytes=0,
        shard_rows=cache.shard_rows,
        views=cache.view_policy,
        first_row=cache.manifest.next_free_row("image"),
        first_text_row=cache.manifest.next_free_row("text"),
    )


def _record_fields(
    cache: Cache | None,
    generation: int,
    freezer: Freezer,
    findings: Findings,
    transaction: Transaction,
) -> Record:
    descriptions = transaction.descriptions
    lines = [cache.manifest.latest.digest if cache else ""]
    lines += [f"{path} {descriptions[path]['sha256']}" for path in sorted(descriptions)]
    return {
        "generation": generation,
        "rows": {"first": freezer.first_row, "count": findings.num_samples},
        "text_rows": {"first": freezer.first_text_row, "count": findings.num_texts},
        "num_captions": findings.num_captions,
        "num_problems": findings.num_problems,
        "digest": sha256_hex("\n".join(lines).encode()),
    }
