"""A description of a cache, for ``siglip2-cache info``."""

import math
from dataclasses import asdict
from typing import Any

import polars as pl

from .cache import Cache
from .format.corpus_notes import Note
from .format.layout import MODALITIES
from .format.teacher_record import IMPORTED
from .search.index_record import describe_indexes, format_index_line


def describe(cache: Cache) -> dict[str, Any]:
    """Return a description of a cache as plain values, reading columns of the catalog once."""
    captions = cache.captions()
    languages, kinds = (
        captions.group_by(tag).len().sort("len", tag, descending=[True, False]).collect()
        for tag in ("lang", "kind")
    )
    return {
        "cache": str(cache.root),
        "format_version": max(g.format_version for g in cache.manifest.generations),
        "samples": cache.num_samples,
        "captions": sum(g.num_new_captions for g in cache.manifest.generations),
        "texts": cache.num_texts,
        "prompts": _count(cache.table("prompts")),
        "problems": _count(cache.table("problems")),
        "notes": [asdict(note) for note in cache.manifest.latest.notes],
        "languages": {lang or "none": n for lang, n in languages.iter_rows()},
        "caption_kinds": {kind or "none": n for kind, n in kinds.iter_rows()},
        "labels": int(
            cache.samples().select(pl.col("label").drop_nulls().n_unique()).collect().item()
        ),
        "views": cache.num_views,
        "augmentation": str(cache.view_policy.augmentation),
        "shard_rows": cache.shard_rows,
        "generations": len(cache.manifest.generations),
        "digest": cache.manifest.latest.digest,
        "sources": [
            {"name": s.name, "kind": s.kind, "location": s.location} for s in cache.sources.values()
        ],
        "pixels": _describe_pixels(cache),
        "teachers": {name: _describe_teacher(cache, name) for name in cache.teachers},
    }


def describe_lines(found: dict[str, Any]) -> list[str]:
    """Return a description as lines of text."""
    languages, kinds = (
        ", ".join(f"{tag} {n:,}" for tag, n in list(found[name].items())[:8])
        for name in ("languages", "caption_kinds")
    )
    lines = [
        f"cache      {found['cache']}",
        *[f"source     {_source(s)}" for s in found["sources"]],
        f"samples    {found['samples']:,}"
        + (f" with {found['labels']:,} labels" if found["labels"] else "")
        + (f", {found['views']} views each" if found["views"] > 1 else "")
        + (f", augmented ({found['augmentation']})" if found["augmentation"] != "none" else ""),
        f"captions   {found['captions']:,} ({found['texts']:,} unique texts"
        + (f", {found['prompts']:,} prompts" if found["prompts"] else "")
        + f"; language {languages or 'none'}"
        + (f"; kind {kinds})" if found["caption_kinds"].keys() - {"none"} else ")"),
    ]
    lines += [f"note       {Note(**note).line()}" for note in found["notes"]]
    if found["problems"]:
        lines.append(f"problems   {found['problems']:,} items of the corpus could not be read")
    for name, teacher in found["teachers"].items():
        lines += _teacher_lines(name, teacher)
    if found["pixels"] is not None:
        lines += _pixels_lines(found["pixels"])
    if not found["teachers"]:
        lines.append("teacher    none yet; run the same siglip2-cache build again")
    return lines


def list_rejected(cache: Cache) -> dict[str, Any]:
    """Return the rejected rows of every teacher, and the items of the corpus that were unreadable."""
    columns = ("source", "place", "key", "reason")
    return {
        "rejected_rows": cache.rejected().collect().to_dicts(),
        "problem_rows": cache.table("problems").select(columns).collect().to_dicts(),
    }


def rejected_lines(listed: dict[str, Any]) -> list[str]:
    """Return the result of list_rejected as lines of text."""
    lines: list[str] = []
    for row in listed["rejected_rows"]:
        key = "" if row["key"] is None else f" {row['key']}"
        where = f"{row['teacher']} {row['modality']} {row['row']}{key}"
        lines.append(f"rejected   {where}: {row['reason']}")
    for problem in listed["problem_rows"]:
        lines.append(f"problem    {problem['place']}: {problem['reason']}")
    return lines or ["rejected   none"]


def _source(source: dict[str, Any]) -> str:
    name = f"{source['name']}: " if source["name"] else ""
    return f"{name}{source['kind']} {source['location']}"


def _count(frame: pl.LazyFrame) -> int:
    return int(frame.select(pl.len()).collect().item())


def _describe_teacher(cache: Cache, name: str) -> dict[str, Any]:
    record, commits = cache.teacher(name), cache.commits(name)
    described: dict[str, Any] = {
        "source": record.source,
        "embed_dim": record.embed_dim,
        "targets": record.encoding.name,
        "distortion": None if record.distortion is None else asdict(record.distortion),
        "patches": None if record.patches is None else asdict(record.patches),
        "imported": record.identity.get(IMPORTED),
        "compute_dtype": record.identity.get("compute_dtype"),
        "logit_scale": record.logit_scale,
        "logit_bias": record.logit_bias,
        "temperature": math.exp(record.logit_scale),
        "num_bytes": sum(f["num_bytes"] for c in commits.units.values() for f in c.files.values()),
        "damaged_records": len(commits.damaged),
        "identity": dict(record.identity),
    }
    for modality in MODALITIES:
        done = commits.units_of(modality)
        array = cache.array_layout(modality, name)
        described[modality] = {
            "units": sum(1 for _ in cache.manifest.units(modality)),
            "units_committed": len(done),
            "rows": cache.manifest.count(modality),
            "rows_committed": sum(c.num_rows for c in done.values()),
            "rejected": commits.num_rejected(modality),
            "shape": list(array.value_shape),
        }
    both = [described[m] for m in MODALITIES]
    described["is_complete"] = all(d["units"] == d["units_committed"] for d in both)
    described["indexes"] = describe_indexes(cache, name)
    return described


def _describe_pixels(cache: Cache) -> dict[str, Any] | None:
    kept = cache.kept_pixels()
    if kept is None:
        return None
    return {
        "short_side": kept.settings.short_side,
        "quality": kept.settings.quality,
        "transparency": "on white" if kept.settings.on_white else "ignored",
        "units": sum(1 for _ in cache.manifest.units("image")),
        "units_committed": len(kept.units),
        "images": kept.num_images,
        "num_bytes": kept.num_bytes,
        "damaged_records": len(kept.commits.damaged),
    }


def _pixels_lines(pixels: dict[str, Any]) -> list[str]:
    is_complete = pixels["units"] == pixels["units_committed"]
    state = "complete" if is_complete else "unfinished; run the same build again"
    return [
        f"pixels     kept: {state}",
        f"           {pixels['images']:,} images ({pixels['units_committed']} of {pixels['units']} units), "
        f"at most {pixels['short_side']} px on the short side, JPEG of quality {pixels['quality']}, "
        f"transparent colours {pixels['transparency']}",
        f"           {pixels['num_bytes']:,} bytes",
    ]


def _teacher_lines(name: str, teacher: dict[str, Any]) -> list[str]:
    decode = teacher["identity"].get("image_decode", "exact")
    decoded = "" if decode == "exact" else f", images decoded {decode}"
    transparency = teacher["identity"].get("image_transparency", "ignored")
    state = "complete" if teacher["is_complete"] else "unfinished; run the same build again"
    limit = teacher["identity"].get("image_max_num_patches")
    patches = "" if limit is None else f"at most {limit:,} patches a view, "
    compiled = "compiled, " if teacher["identity"].get("compiled") else ""
    origin = f"from {teacher['source']}, {teacher['compute_dtype']}, {compiled}{patches}"
    rest = f"{decoded}, transparent colours {transparency}"
    if teacher["imported"] is not None:
        state = state.replace("build", "import")
        origin, rest = (
            f"imported from {teacher['source']}, SHA-256 {teacher['imported'][:12]}..., ",
            "",
        )
    lines = [
        f"teacher    {name}: {state}",
        f"           {origin}scale {teacher['temperature']:.2f}, bias {teacher['logit_bias']:.2f}{rest}",
    ]
    for modality in MODALITIES:
        each = teacher[modality]
        shape = " x ".join(f"{n:,}" for n in each["shape"])
        lines.append(
            f"           {modality:<5} {each['rows_committed']:,} of {each['rows']:,} rows "
            f"({each['units_committed']} of {each['units']} units), {each['rejected']:,} rejected, "
            f"{shape} {teacher['targets']}"
        )
    if (found := teacher["distortion"]) is not None:
        lines.append(
            f"           {teacher['targets']} changes the soft targets by {100 * found['kl_share']:.4f} % of "
            f"their entropy, a logit by at most {found['largest_logit_error']:.3f}"
        )
    if (patches := teacher["patches"]) is not None:
        lines.append(
            f"           patch {patches['grid']} x {patches['grid']} cells of {patches['dim']:,} values of "
            f"{patches['width']:,} ({100 * patches['kept']:.1f} % of the squared norm), int8"
        )
    lines.append(f"           {teacher['num_bytes']:,} bytes")
    lines += [f"           {format_index_line(index)}" for index in teacher["indexes"]]
    return lines
