"""An estimate as lines for people and as JSON for programs."""

from typing import Any

from ...formatting import format_bytes, format_count, format_seconds
from .estimate import Estimate
from .formulas import Quantity

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def estimate_lines(found: Estimate) -> list[str]:
    """Return an estimate for people, one line a number: group, name, number, formula."""
    config, arch = found.config, found.architecture
    views = f" x {config.num_views} views" if config.num_views > 1 else ""
    most = "at most " if arch.is_naflex else ""
    lines = [
        f"teacher    {arch.name}: embeddings of {arch.embed_dim:,}, {most}"
        f"{arch.num_patches:,} patches a view, {arch.text_tokens} tokens a text",
        f"corpus     {config.num_images:,} images{views}, {format_count(config.num_captions, 'caption')}, "
        f"{format_count(config.num_unique_texts, 'unique text')}",
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


def estimate_json(found: Estimate) -> dict[str, Any]:
    """Return an estimate as JSON values: every number by group and name, with unit and formula."""
    groups: dict[str, dict[str, Any]] = {}
    for each in found.quantities:
        numbers = groups.setdefault(each.group.replace(" ", "_"), {})
        numbers[each.name] = {"value": each.value, "unit": each.unit, "formula": each.formula}
    config = found.config
    return {
        "teacher": found.architecture.name,
        "embed_dim": found.architecture.embed_dim,
        "images": config.num_images,
        "views": config.num_views,
        "captions": config.num_captions,
        "texts": config.num_unique_texts,
        "workers": config.num_gpus,
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
    """Return a number with a metric prefix, such as 669.0 GFLOP."""
    for prefix in _PREFIXES:
        if value < 1000 or prefix == _PREFIXES[-1]:
            return f"{value:,.1f} {prefix}{unit}"
        value /= 1000
    raise AssertionError
