"""What a build would take, for people and for programs."""

from typing import Any

from ...formatting import format_bytes, format_count, format_seconds
from .estimate import Capacity, Quantity

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def capacity_lines(found: Capacity) -> list[str]:
    """Return the numbers of a plan, a line each: group, name, number, formula."""
    config, work, arch = found.config, found.config.workload, found.architecture
    views = f" x {work.num_views} views" if work.num_views > 1 else ""
    most = "at most " if arch.is_naflex else ""
    lines = [
        f"teacher    {arch.name}: embeddings of {arch.embed_dim:,}, {most}"
        f"{arch.num_patches:,} patches a view, {arch.text_tokens} tokens a text",
        f"corpus     {work.num_images:,} images{views}, {format_count(work.num_captions, 'caption')}, "
        f"{format_count(work.num_texts, 'unique text')}",
        f"workers    {config.num_gpus:,}",
    ]
    group = ""
    for each in found.quantities:
        if each.group != group:
            lines.append("")
        title, group = each.group if each.group != group else "", each.group
        name = each.name.replace("_", " ")
        lines.append(f"{title:<11}{name:<20}{_show(each):>16}  {each.formula}")
    return [*lines, "", *(f"note       {note}" for note in found.notes)]


def capacity_json(found: Capacity) -> dict[str, Any]:
    """Return a plan as JSON values: every number by group and name, with unit and formula."""
    groups: dict[str, dict[str, Any]] = {}
    for each in found.quantities:
        numbers = groups.setdefault(each.group.replace(" ", "_"), {})
        numbers[each.name] = {"value": each.value, "unit": each.unit, "formula": each.formula}
    work = found.config.workload
    return {
        "teacher": found.architecture.name,
        "embed_dim": found.architecture.embed_dim,
        "images": work.num_images,
        "views": work.num_views,
        "captions": work.num_captions,
        "texts": work.num_texts,
        "workers": found.config.num_gpus,
        **groups,
        "notes": list(found.notes),
    }


def _show(quantity: Quantity) -> str:
    value, unit = quantity.value, quantity.unit
    match unit:
        case "B":
            return format_bytes(value)
        case "B/s":
            return f"{format_bytes(value)}/s"
        case "FLOP" | "FLOP/s":
            return _with_prefix(value, unit)
        case "s":
            return format_seconds(value)
        case "h":
            return f"{value:,.1f} h"
        case "/s":
            return f"{value:,.1f}/s"
        case _:
            return f"{value:,.1f}" if value != int(value) else f"{value:,.0f}"


def _with_prefix(value: float, unit: str) -> str:
    """Return a number for people with a metric prefix: 669.0 GFLOP."""
    for prefix in _PREFIXES:
        if value < 1000 or prefix == _PREFIXES[-1]:
            return f"{value:,.1f} {prefix}{unit}"
        value /= 1000
    raise AssertionError
