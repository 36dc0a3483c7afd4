"""What is printed at the end of an import."""

import shlex
from typing import Any

from ...formatting import format_seconds
from ..planning.findings import finding_lines
from .config import ImportConfig, ImportSummary


def import_lines(config: ImportConfig, summary: ImportSummary) -> list[str]:
    """Return a summary of an import for people."""
    build = summary.build
    list_all = f"siglip2-cache info {shlex.quote(str(config.cache))} --rejected lists them all"
    lines = finding_lines(build.plan.findings, list_all) if build.plan.was_scanned else []
    lines += summary.lines
    if build.num_units:
        lines.append(
            f"imported   {build.num_images:,} images, {build.num_texts:,} texts in {build.num_units} "
            f"units, {format_seconds(build.elapsed_s)}"
        )
    else:
        lines.append(
            f"nothing to do: every unit of {config.cache} is committed for {build.teacher}"
        )
    if build.num_rejected:
        lines.append(f"no target  {build.num_rejected:,} rows of the cache:")
        lines += [f"           {each}" for each in build.first_rejected]
        if build.num_rejected > len(build.first_rejected):
            lines.append(f"           ... {list_all}")
    lines.append(
        f"cache      {config.cache}, teacher {build.teacher}, imported from {summary.source} "
        f"({summary.kind}, SHA-256 {summary.digest[:12]}...)"
    )
    return lines


def import_numbers(summary: ImportSummary) -> dict[str, Any]:
    """Return the same as values for JSON."""
    build, fit = summary.build, summary.fit
    return {
        "teacher": build.teacher,
        "source": summary.source,
        "kind": summary.kind,
        "sha256": summary.digest,
        "units": build.num_units,
        "images": build.num_images,
        "texts": build.num_texts,
        "without_target": build.num_rejected,
        "names": summary.names,
        "norms": summary.norms,
        "logit_scale": summary.logit_scale,
        "logit_bias": summary.logit_bias,
        "fit": None
        if fit is None
        else {
            "pairs": fit.num_pairs,
            "scale_error": fit.scale_error,
            "bias_error": fit.bias_error,
            "own_probability": fit.own,
            "loss": fit.loss,
        },
        "note": summary.note,
    }
