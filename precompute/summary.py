"""The lines printed at the end of a build."""

import shlex
from dataclasses import asdict
from typing import Any

from ..formatting import format_bytes, format_count, format_seconds
from .config import BuildConfig, BuildSummary
from .planning.findings import finding_lines, finding_values


def summary_lines(config: BuildConfig, summary: BuildSummary) -> list[str]:
    """Return a summary of a build for people."""
    list_all = f"siglip2-cache info {shlex.quote(str(config.cache))} --rejected lists them all"
    lines = finding_lines(summary.plan.findings, list_all)
    if summary.num_units == 0 and config.retry_rejected and summary.num_rejected:
        lines.append(f"tried again {summary.num_rejected:,} rejected rows; none was embedded")
    elif summary.num_units == 0 and summary.num_kept_now == 0:
        lines.append(
            f"nothing to do: every unit of {config.cache} is committed for {summary.teacher}"
        )
    elif summary.num_units:
        lines.append(
            f"embedded   {summary.num_images:,} images, {summary.num_texts:,} texts in "
            f"{summary.num_units} units, {format_seconds(summary.elapsed_s)}; batches of "
            f"{summary.image_batch} images, {summary.text_batch} texts"
        )
        lines += _stage_lines(summary)
    if summary.num_copies:
        lines.append(
            f"copies     {format_count(summary.num_copies, 'image')} with the bytes of another image, kept "
            f"as separate samples; siglip2-cache duplicates {shlex.quote(str(config.cache))} lists them; in "
            "a new cache, rows of one image that share a key or path become one sample"
        )
    lines += _rejected_lines(summary, list_all)
    if summary.num_kept is not None:
        lines.append(
            f"pixels     {format_count(summary.num_kept, 'image')} kept, {summary.num_kept_now:,} of them by "
            f"this run, {format_bytes(summary.num_kept_bytes)}"
        )
    lines.append(f"cache      {config.cache}, teacher {summary.teacher}")
    return lines


def summary_values(config: BuildConfig, summary: BuildSummary) -> dict[str, Any]:
    """Return a summary of a build as JSON values."""
    times = summary.times
    return {
        "cache": str(config.cache),
        "teacher": summary.teacher,
        "planned": finding_values(summary.plan.findings),
        "units": summary.num_units,
        "images": summary.num_images,
        "texts": summary.num_texts,
        "seconds": round(summary.elapsed_s, 3),
        "batch_size": {"image": summary.image_batch, "text": summary.text_batch},
        "worker_seconds": {
            name.removesuffix("_s"): round(seconds, 3) for name, seconds in asdict(times).items()
        },
        "workers": summary.num_workers,
        "copies": summary.num_copies,
        "rejected": summary.num_rejected,
        "rejected_now": summary.num_rejected_now,
        "first_rejected": summary.first_rejected,
        "pixels": None
        if summary.num_kept is None
        else {
            "images": summary.num_kept,
            "images_now": summary.num_kept_now,
            "bytes": summary.num_kept_bytes,
        },
    }


def _stage_lines(summary: BuildSummary) -> list[str]:
    times, workers = summary.times, summary.num_workers
    decoders = max(1, summary.num_decoders) * workers
    stages = {
        "read": times.read_s / decoders,
        "decode": times.decode_s / decoders,
        "forward": times.forward_s / workers,
        "write": times.write_s / workers,
    }
    shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items())
    slowest = max(stages, key=lambda name: stages[name])
    over = (
        f"{decoders} workers"
        if workers == 1
        else f"{decoders} decoders; means of {workers} workers"
    )
    return [
        f"stages     {shown} (they overlap; read and decode over {over}); "
        f"slowest: {slowest}; the teacher waited {times.wait_s / workers:.1f} s for pixels"
    ]


def _rejected_lines(summary: BuildSummary, list_all: str) -> list[str]:
    if not summary.num_rejected:
        return ["rejected   none"]
    lines = [f"rejected   {summary.num_rejected:,} rows of the cache:"]
    lines += [f"           {each}" for each in summary.first_rejected]
    if summary.num_rejected > len(summary.first_rejected):
        lines.append(f"           ... {list_all}")
    lines.append("           --retry-rejected tries them again")
    return lines
