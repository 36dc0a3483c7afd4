"""A whole report: its sections, for the page, for the terminal and for JSON."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CacheError, SettingError
from ..formatting import first_line
from ..progress import Display, TaskProgress
from ..store.cache import Cache, open_cache
from ..store.io.location import given_location
from ..student.evaluation.compare import Embedded, EvalConfig, compare, embed_model
from ..student.training.run_files import RunFiles, teachers_of
from .config import FullReportConfig
from .corpus import corpus_section
from .failures import failures_section
from .learning import learning_section
from .section import Section
from .standing import standing_section
from .teacher import sample_rows, teacher_section


@dataclass(frozen=True, slots=True, kw_only=True)
class FullReport:
    """Result of a report."""

    title: str
    """Name of the run or of the cache."""

    cache: Cache | None
    """None: it could not be opened."""

    teachers: tuple[str, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    """What could not be shown, and why."""

    def values(self) -> dict[str, Any]:
        """Return all numbers as JSON values, by the names of the sections."""
        found: dict[str, Any] = {}
        for section in self.sections:
            found.setdefault(section.name, {}).update(section.values)
        return {**found, "notes": list(self.notes)}


def make_report(config: FullReportConfig, *, progress: TaskProgress | None = None) -> FullReport:
    """Return a report about a cache, or about a run and the cache it was trained on.

    A run whose cache or images are gone is reported as far as its own files go; the notes say what is
    missing.

    Raises:
        SettingError, NotACacheError, TrainError: there is no such cache, run or teacher.
    """
    progress = progress or TaskProgress(Display())
    try:
        return _make(config, progress)
    finally:
        progress.stop()


def _make(config: FullReportConfig, progress: TaskProgress) -> FullReport:
    if config.run is None:
        assert config.cache is not None
        cache = open_cache(config.cache, corpus_roots=config.corpus_roots)
        names = cache.teachers if config.teacher is None else (cache.teacher(config.teacher).name,)
        return FullReport(
            title=cache.root.name,
            cache=cache,
            teachers=names,
            sections=tuple(_cache_sections(cache, names, config, progress)),
            notes=(),
        )
    run = RunFiles(config.run)
    settings = run.read_config()
    if settings is None:
        raise SettingError(
            f"{config.run} has no config.yaml, so it is not the folder of a training"
        )
    notes: list[str] = []
    opened = _open_cache(config, settings, notes)
    sections = [learning_section(run, settings)]
    names: tuple[str, ...] = ()
    if opened is None:
        evaluation = run.read_evaluation()
        if "after" in evaluation:
            sections.append(_written(evaluation, None))
    else:
        cache, names = opened
        embedded = _embed(run, settings, cache, names[0], config, progress, notes)
        sections += _student_sections(run, settings, cache, config, embedded)
        sections += _cache_sections(cache, names, config, progress)
    return FullReport(
        title=config.run.resolve().name,
        cache=None if opened is None else opened[0],
        teachers=names,
        sections=tuple(sections),
        notes=tuple(notes),
    )


def _cache_sections(
    cache: Cache, names: tuple[str, ...], config: FullReportConfig, progress: TaskProgress
) -> Iterator[Section]:
    first = names[0] if names else None
    yield corpus_section(cache, first, sample_rows(cache, first, config), config, progress)
    for name in names:
        yield teacher_section(cache, name, sample_rows(cache, name, config), config)


def _open_cache(
    config: FullReportConfig, settings: dict[str, Any], notes: list[str]
) -> tuple[Cache, tuple[str, ...]] | None:
    """Return the cache of a run and its teachers, the first one first; None, and a note, if it has moved."""
    wanted = config.cache or given_location(str(settings["cache"]))
    roots = {**(settings.get("corpus_roots") or {}), **config.corpus_roots}
    names = (config.teacher,) if config.teacher or config.cache else teachers_of(settings)
    try:
        cache = open_cache(wanted, corpus_roots=roots)
        return cache, tuple(cache.teacher(name).name for name in names)
    except CacheError as error:
        if config.cache is not None:
            raise
        notes.append(
            f"the cache of the training cannot be read, name it with --cache ({first_line(error)})"
        )
        return None


def _student_sections(
    run: RunFiles,
    settings: dict[str, Any],
    cache: Cache,
    config: FullReportConfig,
    embedded: Embedded | None,
) -> Iterator[Section]:
    """Yield where the student stands and where it fails, as far as there are a model and images."""
    evaluation = run.read_evaluation()
    is_of_run = config.cache is None and config.teacher in (None, teachers_of(settings)[0])
    if is_of_run and config.split == "val" and "after" in evaluation:
        yield _written(evaluation, embedded)
    elif embedded is not None:
        found = compare(embedded, seed=config.seed).found
        columns = {"teacher": found["columns"]["teacher"], "student": found["columns"]["model"]}
        yield standing_section(columns, found["gallery"], embedded)
    if embedded is not None:
        failures = failures_section(embedded, cache, examples=config.examples)
        if failures is not None:
            yield failures


def _written(evaluation: dict[str, Any], embedded: Embedded | None) -> Section:
    """Return the part about the evaluation that the training wrote."""
    names = {"teacher": "teacher", "before": "student before", "after": "student after"}
    columns = {words: evaluation[name] for name, words in names.items() if name in evaluation}
    return standing_section(columns, evaluation["gallery"], embedded)


def _embed(
    run: RunFiles,
    settings: dict[str, Any],
    cache: Cache,
    teacher: str,
    config: FullReportConfig,
    progress: TaskProgress,
    notes: list[str],
) -> Embedded | None:
    """Return the embeddings of the finished student; None, and a note, without model or images."""
    if not run.model.is_dir():
        notes.append("calibration and failures need the finished student; run the same train again")
        return None
    evaluation = EvalConfig(
        model=str(run.model),
        cache=cache.root,
        teacher=teacher,
        split=config.split,
        samples=config.samples,
        seed=config.seed,
        device=config.device,
        batch_size=config.batch_size,
        decode_workers=config.decode_workers,
        corpus_roots=cache.corpus_roots,
        allow_partial=True,
        pixels="kept" if settings.get("pixels") == "kept" and config.cache is None else "corpus",
    )
    try:
        return embed_model(evaluation, progress=progress)
    except CacheError as first:
        if evaluation.pixels == "corpus" and cache.kept_pixels() is not None:
            try:  # the corpus may be gone
                return embed_model(replace(evaluation, pixels="kept"), progress=progress)
            except CacheError:
                pass
        notes.append(f"calibration and failures are missing: {first_line(first)}")
        return None


def find_run(given: str) -> Path | None:
    """Return the folder of a run, if that is what a path names; None for a cache, or what may be one.

    Raises:
        SettingError: nothing of that name is on this disk.
    """
    path = Path(given)
    if "://" not in given and not path.exists():
        raise SettingError(
            f"no run and no cache at {given}: there is no such folder; name the --out of a training, or a "
            "cache"
        )
    is_run = (path / "config.yaml").is_file() and not (path / "cache.json").exists()
    return path if is_run else None
