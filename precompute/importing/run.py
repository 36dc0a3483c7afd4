"""The import: plan, join names to rows, add the teacher, make every missing unit as a build does."""

import contextlib
import time
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import BuildError, SettingError
from ...store.cache import Cache
from ...store.format.catalog import read_part
from ...store.format.layout import MODALITIES, Modality
from ...store.format.row_encoding import FLOAT16
from ...store.format.teacher_files import grow_arrays
from ...store.format.teacher_record import TeacherRecord
from ...store.format.transaction import clear_garbage
from ...store.io.location import parse_location
from ...store.io.storage import Storage, open_storage
from ...store.targets.distortion import BUDGET
from ..build import count_rejected, count_rows, start_progress
from ..config import BuildSummary
from ..estimate.disk import refuse_small_disk
from ..executor.in_process import InProcessEngine
from ..executor.messages import WorkOrder
from ..executor.pending import find_jobs, roll_forward_units
from ..executor.progress import BuildProgress
from ..executor.totals import BuildTotals
from ..executor.unit import Job
from ..executor.work_queue import WorkQueue
from ..planning.config import PlanConfig
from ..planning.plan import Plan, make_plan, open_if_planned, recorded_plan
from ..planning.shared_scan import scan_in_processes
from ..planning.spill import Scratch
from ..sources import TableColumns
from ..teacher.identity import finish_interrupted_teachers
from ..teacher.imported import IMPORTED_PARTS, add_imported, find_imported
from .config import ImportConfig, ImportSummary
from .datacompdr import CAPTIONS, SYN_COLUMN, DataCompDR
from .embeddings import Embeddings
from .files import SourceFiles
from .fit import MAX_PAIRS, LogitFit, fit_logits
from .match import Matches, refuse_unmatched
from .open import open_embeddings
from .rows import ImportedTargets, unit_rows

_BATCH = 256


def import_targets(config: ImportConfig, *, progress: BuildProgress | None = None) -> ImportSummary:
    """Write embeddings that another program made into a cache as a teacher, and return a summary.

    Safe to kill at any time and to run again.

    Raises:
        CacheError: of any kind; the message says how to continue.
        BuildInterrupted: Ctrl-C or SIGTERM, after the current batch.
    """
    with Scratch() as scratch:
        return _Import(config, progress or BuildProgress(), scratch).run()


class _Import:
    """One run of an import."""

    def __init__(self, config: ImportConfig, progress: BuildProgress, scratch: Scratch) -> None:
        self._config, self._progress, self._scratch = config, progress, scratch
        self._files: Storage = open_storage(parse_location(config.cache))
        self._roots = config.corpus_roots

    def run(self) -> ImportSummary:
        opened = SourceFiles(self._scratch)
        location = parse_location(self._config.source)
        source = open_embeddings(location, self._config.columns, opened)
        with contextlib.closing(source):
            return self._import(source)

    def _import(self, source: Embeddings) -> ImportSummary:
        started = time.monotonic()
        plan = self._make_plan(source)
        finish_interrupted_teachers(self._files)
        cache = self._open()
        self._progress.say(f"reading the keys of {source.location}")
        matches = Matches(source, cache, self._scratch)
        refuse_unmatched(matches, source, cache)
        self._progress.say(f"hashing {source.location}")
        digest = source.digest()
        record, fit = self._find_or_add(cache, source, matches, digest)
        cache = self._open()
        grow_arrays(cache.files, cache.manifest, record)
        roll_forward_units(self._files, record.name)
        jobs = find_jobs(
            cache,
            record.name,
            batch_size={"image": _BATCH, "text": _BATCH},
            retry_rejected=self._config.retry_rejected,
            say=self._progress.say,
        )
        targets = ImportedTargets(
            source, matches, {"imported": digest, "source": str(source.location)}
        )
        build = BuildSummary(plan=plan, teacher=record.name)
        if jobs:
            self._make_units(cache, record, targets, jobs, build)
        clear_garbage(self._files)
        count_rejected(cache.renewed(), record.name, build)
        if (
            0 < build.num_images == build.num_rejected_now["image"]
            and matches.counts["image"].num_matched
        ):
            raise BuildError(
                f"every image of this import was rejected ({build.num_images:,}), the first: "
                f"{build.first_rejected[0]}; use --corpus-root OLD=NEW if the corpus moved, and "
                "--retry-rejected"
            )
        build.elapsed_s = time.monotonic() - started
        return ImportSummary(
            build=build,
            source=str(source.location),
            kind=source.kind,
            digest=digest,
            logit_scale=record.logit_scale,
            logit_bias=record.logit_bias,
            fit=fit,
            names={m: matches.counts[m].as_json() for m in MODALITIES},
            norms={m: targets.norms[m].as_json() for m in MODALITIES},
            note=source.note(),
            lines=_found_lines(source, matches, targets, fit),
        )

    def _open(self) -> Cache:
        return Cache(self._files.root, corpus_roots=self._roots)

    def _make_plan(self, source: Embeddings) -> Plan:
        """Plan the corpus that was given; else find that of the cache; else the tars are the corpus."""
        config, cache = self._config, open_if_planned(self._files, self._roots)
        plan = config.plan
        if plan is None and cache is not None:
            _refuse_other_shape(config, cache)
            return recorded_plan(cache)
        views = config.num_views
        if isinstance(source, DataCompDR) and cache is None:
            plan = plan or PlanConfig(sources=(str(source.location),), shard_rows=config.shard_rows)
            views = views or source.first_num_crops() + 1
            plan = replace(
                plan,
                has_stored_views=views > 1,
                columns=plan.columns or TableColumns(captions=(SYN_COLUMN,)),
                caption_endings=plan.caption_endings or CAPTIONS,
            )
        if plan is None:
            raise SettingError(
                f"there is no cache at {self._files.root}; give --corpus, the images and captions that the "
                "embeddings belong to, and a cache of them is made"
            )
        plan = replace(plan, num_views=views, corpus_roots=self._roots)
        if cache is None:
            self._files.check_exclusive()
        return make_plan(
            plan,
            self._files,
            on_scan=lambda: self._progress.say(f"planning {', '.join(plan.sources)}"),
            scan_ahead=lambda: scan_in_processes(plan, self._files),
        )

    def _find_or_add(
        self, cache: Cache, source: Embeddings, matches: Matches, digest: str
    ) -> tuple[TeacherRecord, LogitFit | None]:
        config = self._config
        parts = source.digest_of_parts()
        found = find_imported(cache, config.teacher_name, digest, parts)
        if found is not None:
            if found.embed_dim != source.embed_dim:
                # It is of an earlier release, which did not record the columns.
                raise SettingError(
                    f"teacher {found.name!r} of {cache.root} has width {found.embed_dim:,}, and these "
                    f"embeddings have {source.embed_dim:,}; name the columns as then, or give them another "
                    "name"
                )
            for option, asked, recorded in (
                ("--logit-scale", config.logit_scale, found.logit_scale),
                ("--logit-bias", config.logit_bias, found.logit_bias),
            ):
                if asked is not None and asked != recorded:
                    raise SettingError(
                        f"{option} is {recorded:g} for teacher {found.name!r} of {cache.root} and "
                        f"{asked:g} was asked for; leave it out, or import under another name"
                    )
            return found, None
        fit = None
        scale, bias = config.logit_scale, config.logit_bias
        if scale is None or bias is None:
            fit = _fit(cache, source, matches, config)
            scale, bias = fit.logit_scale, fit.logit_bias
        refuse_small_disk(cache, cache.manifest.layouts(source.embed_dim, FLOAT16, None), set())
        add_imported(
            cache,
            config.teacher_name,
            # Earlier releases compare the dtype of every teacher of a cache, and take no other word.
            {
                "imported": digest,
                "imported_kind": source.kind,
                "compute_dtype": "float32",
                **({} if parts is None else {IMPORTED_PARTS: parts}),
            },
            source=str(source.location),
            embed_dim=source.embed_dim,
            logit_scale=scale,
            logit_bias=bias,
        )
        added = find_imported(self._open(), config.teacher_name, digest, parts)
        assert added is not None
        return added, fit

    def _make_units(
        self,
        cache: Cache,
        record: TeacherRecord,
        targets: ImportedTargets,
        jobs: list[Job],
        summary: BuildSummary,
    ) -> None:
        order = WorkOrder(
            cache=cache.root,
            corpus_roots=cache.corpus_roots,
            teacher=record.name,
            checkpoint=None,
            device="cpu",
            compute_dtype="float16",
            image_batch=0,
            text_batch=0,
            decode="scaled",
            num_decoders=self._config.decode_workers,
            sample_timeout_s=self._config.sample_timeout_s,
            num_threads=None,
            targets_budget=BUDGET,  # of a cache that was converted to int8
        )
        totals = BuildTotals(self._progress, lambda _: start_progress(self._progress, jobs))
        try:
            InProcessEngine(lambda _: targets).run(order, WorkQueue(jobs), totals)
        finally:
            self._progress.stop()
            count_rows(totals, summary)


def _refuse_other_shape(config: ImportConfig, cache: Cache) -> None:
    """Refuse views and rows of a unit that are not those of the cache.

    Raises:
        SettingError: names both.
    """
    for name, asked, recorded in (
        ("views", config.num_views, cache.num_views),
        ("shard rows", config.shard_rows, cache.shard_rows),
    ):
        if asked not in (None, recorded):
            raise SettingError(
                f"{name} is {recorded} in {cache.root} and cannot be changed to {asked}; leave the option "
                "out, or import into a new cache"
            )


def _fit(cache: Cache, source: Embeddings, matches: Matches, config: ImportConfig) -> LogitFit:
    """Fit the logits to some images and one caption of each."""
    random = np.random.default_rng(config.seed)
    parts = cache.manifest.parts("captions")
    pairs = pl.DataFrame(schema={"row": pl.Int64, "text_row": pl.Int64})
    if parts:
        part = parts[int(random.integers(len(parts)))]
        pairs = read_part("captions", cache.part_file(part)).select("row", "text_row")
    pairs = pairs.sample(fraction=1.0, shuffle=True, seed=int(random.integers(2**32)))
    for name in ("row", "text_row"):
        pairs = pairs.unique(name, keep="first", maintain_order=True)
    images: list[NDArray[np.float32]] = [np.empty((0, source.embed_dim), np.float32)]
    texts: list[NDArray[np.float32]] = [np.empty((0, source.embed_dim), np.float32)]
    for some in pairs.iter_slices(MAX_PAIRS):
        rows = matches.find("image", np.sort(some["row"].to_numpy()))
        text_rows = matches.find("text", np.sort(some["text_row"].to_numpy()))["row"]
        has_both = pl.col("row").is_in(rows.filter(pl.col("view") == 0)["row"].implode())
        has_both &= pl.col("text_row").is_in(text_rows.implode())
        images_ND = _vectors(source, matches, "image", some.filter(has_both)["row"])
        texts_ND = _vectors(source, matches, "text", some.filter(has_both)["text_row"])
        is_good_N = np.isfinite(images_ND).all(axis=1) & np.isfinite(texts_ND).all(axis=1)
        images.append(images_ND[is_good_N])
        texts.append(texts_ND[is_good_N])
        if sum(map(len, images)) >= MAX_PAIRS:
            break
    return fit_logits(
        np.concatenate(images)[:MAX_PAIRS],
        np.concatenate(texts)[:MAX_PAIRS],
        logit_scale=config.logit_scale,
        logit_bias=config.logit_bias,
    )


def _vectors(
    source: Embeddings, matches: Matches, modality: Modality, rows: pl.Series
) -> NDArray[np.float32]:
    """Return unit vectors of rows in any order, which all have one; of images those of view 0."""
    if rows.is_empty():
        return np.empty((0, source.embed_dim), np.float32)
    places = matches.find(modality, np.sort(rows.to_numpy())).filter(pl.col("view") == 0)
    ordered = rows.alias("row").to_frame().join(places, on="row", how="left", maintain_order="left")
    return unit_rows(source.vectors(modality, ordered)).astype(np.float32)


def _found_lines(
    source: Embeddings, matches: Matches, targets: ImportedTargets, fit: LogitFit | None
) -> list[str]:
    lines: list[str] = []
    for modality in MODALITIES:
        lines += matches.counts[modality].lines(modality)
        lines += targets.norms[modality].lines(modality)
    note = source.note()
    lines += [f"note       {note}"] if note else []
    lines += [fit.line()] if fit else []
    return lines
