"""A dry run of a build: the images, texts, units and bytes it would write, and the time it would take."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BuildError
from ..formatting import format_bytes, format_seconds
from ..images.decoder import Decoder
from ..images.image import ImageRef, PixelFormat
from ..siglip import Checkpoint, find_architecture, resolve_checkpoint
from ..store.cache import Cache
from ..store.format.layout import MODALITIES, Modality
from ..store.format.patch_encoding import CELL
from ..store.format.pixel_settings import expected_bytes
from ..store.format.row_encoding import RowEncoding, parse_encoding
from ..store.format.shard import ArrayLayout
from ..store.format.teacher_record import PatchSettings
from ..store.io.location import parse_location
from ..store.io.storage import open_storage
from .config import BuildConfig
from .estimate.disk import unit_bytes
from .planning.findings import Findings, finding_lines, finding_values
from .planning.plan import Plan, make_plan, open_if_planned
from .planning.source_names import name_sources
from .sources import Sample
from .sources.samples import place_of
from .teacher.embedder import Embedder, split_images
from .teacher.identity import (
    TeacherChoices,
    find_teacher,
    refuse_other_patches,
    refuse_other_targets,
    restore_checkpoint,
)
from .teacher.planned_patches import planned_patches
from .teacher.siglip_teacher import load_teacher
from .teacher.teacher import TeacherFactory, with_compile

_TIMED_BATCHES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a build would write and how long it would take."""

    plan: Plan
    embed_dim: int
    encoding: RowEncoding
    """How targets are stored."""

    num_images: int
    """Images to embed: new ones, and those of the cache without a target of this teacher."""

    num_texts: int
    num_units: dict[Modality, int]
    num_target_bytes: int
    num_catalog_bytes: int
    num_pixel_bytes: int = 0
    """Expected bytes of the pixels to keep."""

    patches: PatchSettings | None = None
    """The patch targets; None: there are none."""

    num_patch_bytes: int = 0

    images_per_s: float | None = None
    texts_per_s: float | None = None

    @property
    def seconds(self) -> float | None:
        """Time of the whole build without planning and loading; None if not timed."""
        if self.images_per_s is None or self.texts_per_s is None:
            return None
        return self.num_images / self.images_per_s + self.num_texts / self.texts_per_s


def dry_run(
    config: BuildConfig,
    *,
    is_timed: bool,
    on_samples: Callable[[int], None] = lambda count: None,
    make_teacher: TeacherFactory = load_teacher,
) -> DryRun:
    """Return what a build would do; plan without writing anything.

    Args:
        config: the build.
        is_timed: also load the teacher and time a few real batches.
        on_samples: called with a number of samples that were scanned since the last call.
        make_teacher: loads the model.

    Raises:
        CacheError: for the same reasons as the build.
    """
    checkpoint = resolve_checkpoint(config.teacher, revision=config.revision)
    checkpoint = config.choices.apply(checkpoint)
    files = open_storage(parse_location(config.cache))
    plan = make_plan(config.plan, files, is_dry_run=True, on_samples=on_samples)
    new = {"image": plan.findings.num_samples, "text": plan.findings.num_texts}
    spans: dict[Modality, list[int]] = {m: _unit_sizes(new[m], plan.shard_rows) for m in MODALITIES}
    cache = open_if_planned(files, config.plan.corpus_roots)
    choices = config.choices
    encoding = parse_encoding(config.targets or "float16")
    arch = find_architecture(str(checkpoint.folder))
    patches = planned_patches(arch, config.patch_targets, config.patch_dims)
    if cache is not None:
        record = find_teacher(cache, checkpoint, config.choices, name=config.teacher_name)
        if record is not None:
            checkpoint, choices = restore_checkpoint(checkpoint, record), choices.fill_from(record)
            refuse_other_targets(cache, record, config.targets)
            refuse_other_patches(cache, record, config.patch_targets, config.patch_dims)
            encoding, patches = record.encoding, record.patches
        done = set(cache.commits(record.name).units) if record else set[tuple[Modality, int]]()
        for modality in MODALITIES:
            spans[modality] += [
                unit.rows.count
                for unit in cache.manifest.units(modality)
                if (modality, unit.number) not in done
            ]
    arrays = [_array(plan, m, checkpoint.embed_dim, encoding) for m in MODALITIES]
    num_bytes = sum(unit_bytes(each, n) for each in arrays for n in spans[each.modality])
    num_patch_bytes = 0
    if patches is not None:
        array = replace(
            arrays[0], embed_dim=patches.dim, encoding=CELL, num_cells=patches.num_cells
        )
        num_patch_bytes = sum(unit_bytes(array, n) for n in spans["image"])
    rates = (
        _time_batches(config, plan, checkpoint, choices, make_teacher) if is_timed else (None, None)
    )
    return DryRun(
        plan=plan,
        embed_dim=checkpoint.embed_dim,
        encoding=encoding,
        num_images=sum(spans["image"]),
        num_texts=sum(spans["text"]),
        num_units={m: len(spans[m]) for m in MODALITIES},
        num_target_bytes=num_bytes,
        num_catalog_bytes=plan.num_catalog_bytes,
        patches=patches,
        num_patch_bytes=num_patch_bytes,
        num_pixel_bytes=_pixel_bytes(config, cache, new["image"]),
        images_per_s=rates[0],
        texts_per_s=rates[1],
    )


def dry_run_values(found: DryRun) -> dict[str, Any]:
    """Return the result of a dry run as JSON values."""
    return {
        "planned": finding_values(found.plan.findings),
        "images": found.num_images,
        "views": found.plan.views.num_views,
        "augmentation": str(found.plan.views.augmentation),
        "texts": found.num_texts,
        "units": found.num_units,
        "shard_rows": found.plan.shard_rows,
        "embed_dim": found.embed_dim,
        "target_bytes": found.num_target_bytes,
        "catalog_bytes": found.num_catalog_bytes,
        "pixel_bytes": found.num_pixel_bytes,
        "patch_bytes": found.num_patch_bytes,
        "images_per_s": found.images_per_s,
        "texts_per_s": found.texts_per_s,
        "seconds": found.seconds,
    }


def dry_run_lines(found: DryRun) -> list[str]:
    """Return the result of a dry run for people."""
    plan, findings = found.plan, found.plan.findings
    views = f" x {plan.views.num_views} views" if plan.views.num_views > 1 else ""
    if not plan.views.augmentation.is_none:
        views += f", augmented ({plan.views.augmentation})"
    lines = [
        *[
            line
            for line in finding_lines(findings, "a build keeps them all")
            if not line.startswith("planned")
        ],
        f"images     {found.num_images:,}{views}{_missing(findings)}",
        f"captions   {findings.num_captions:,}",
        f"texts      {found.num_texts:,} unique"
        + (f", {findings.num_prompts:,} of them prompts" if findings.num_prompts else ""),
        f"units      {found.num_units['image']:,} image, {found.num_units['text']:,} text, "
        f"{plan.shard_rows:,} rows each",
        f"on disk    {format_bytes(found.num_target_bytes)} of targets "
        f"({found.embed_dim} x {found.encoding.name}), {format_bytes(found.num_catalog_bytes)} of catalog"
        + _patches(found)
        + (
            f", about {format_bytes(found.num_pixel_bytes)} of kept pixels"
            if found.num_pixel_bytes
            else ""
        ),
    ]
    seconds = found.seconds
    if seconds is not None and found.images_per_s and found.texts_per_s:
        lines.append(
            f"time       {format_seconds(seconds)} ({found.images_per_s:,.1f} images/s, "
            f"{found.texts_per_s:,.1f} texts/s on real batches)"
        )
    lines.append("dry run: nothing was written")
    return lines


def _patches(found: DryRun) -> str:
    patches = found.patches
    if patches is None:
        return ""
    return (
        f", {format_bytes(found.num_patch_bytes)} of patch targets ({patches.num_cells:,} x "
        f"{patches.dim:,} x int8)"
    )


def _missing(findings: Findings) -> str:
    count = findings.num_missing_files
    return f" ({count:,} of them are not there now and would be rejected)" if count else ""


def _pixel_bytes(config: BuildConfig, cache: Cache | None, num_new: int) -> int:
    """Return the expected bytes of the pixels that the build would keep."""
    kept = None if cache is None else cache.kept_pixels()
    short_side = config.keep_pixels or (kept.settings.short_side if kept else None)
    if short_side is None:
        return 0
    num_images = num_new + (0 if cache is None else cache.num_samples)
    num_kept = 0 if kept is None else sum(unit.num_rows for unit in kept.units.values())
    return (num_images - num_kept) * expected_bytes(short_side)


def _unit_sizes(num_rows: int, shard_rows: int) -> list[int]:
    return [min(shard_rows, num_rows - i) for i in range(0, num_rows, shard_rows)]


def _array(plan: Plan, modality: Modality, embed_dim: int, encoding: RowEncoding) -> ArrayLayout:
    return ArrayLayout(
        modality=modality,
        num_rows=0,
        num_views=plan.views.num_views if modality == "image" else 1,
        embed_dim=embed_dim,
        encoding=encoding,
        shard_rows=plan.shard_rows,
    )


def _time_batches(
    config: BuildConfig,
    plan: Plan,
    checkpoint: Checkpoint,
    choices: TeacherChoices,
    make_teacher: TeacherFactory,
) -> tuple[float, float]:
    """Return (samples/s, texts/s) over a few real batches, decoding and forward overlapped."""
    load = with_compile(make_teacher, choices.is_compiled)
    teacher = load(checkpoint, config.device, choices.compute_dtype)
    images, texts = teacher.auto_batch_size()
    images, texts = config.batch_size or images, config.batch_size or texts
    num_views = plan.views.num_views
    embedder = Embedder(teacher, split_images(teacher.image, images, num_views)[1], texts)
    size = max(1, images // num_views)  # of one forward pass: a NaFlex window would take long
    refs, captions = _first_samples(config, plan, size * (_TIMED_BATCHES + 1), texts)
    decoder = Decoder(
        PixelFormat(num_views=num_views, recipe=teacher.image, decode=choices.decode or "exact"),
        batch_images=size,
        num_workers=config.num_decoders,
        timeout_s=config.sample_timeout_s,
    )
    batches = [(None, refs[i : i + size]) for i in range(0, len(refs), size)]
    counted, started = 0, 0.0
    for i, batch in enumerate(decoder.decode(batches)):
        embedder.start_images(*batch.flat_views())()
        if i == 0:
            started = time.perf_counter()  # the first batch warms up
        else:
            counted += len(batch.refs)
        if len(batches) == 1:
            embedder.start_images(*batch.flat_views())()
            counted = len(batch.refs)
    images_per_s = counted / (time.perf_counter() - started)
    captions = captions or ["a photo"]
    embedder.start_texts(captions)()
    started = time.perf_counter()
    embedder.start_texts(captions)()
    return images_per_s, len(captions) / (time.perf_counter() - started)


def _first_samples(
    config: BuildConfig, plan: Plan, num_images: int, num_texts: int
) -> tuple[list[ImageRef], list[str]]:
    from ..store.format.views import draw_view

    cache = open_if_planned(open_storage(parse_location(config.cache)), config.plan.corpus_roots)
    refs: list[ImageRef] = []
    captions: dict[str, None] = {}
    for _, source in name_sources(config.plan, cache):
        root = source.root
        for item in source.scan():
            if not isinstance(item, Sample):
                continue
            boxes = tuple(draw_view(plan.views, item.key, v) for v in range(plan.views.num_views))
            refs.append(ImageRef(len(refs), place_of(item, root), boxes))
            captions.update((caption.text, None) for caption in item.captions)
            if len(refs) >= num_images:
                return refs, list(captions)[:num_texts]
    if not refs:
        raise BuildError("there is no image to time")
    return refs, list(captions)[:num_texts]
