"""Parameters, bytes and operations of a checkpoint."""

import numpy as np

from ...formatting import aligned, format_bytes
from ...siglip import find_architecture, resolve_checkpoint, weight_files
from ...siglip.files import read_header


def sizes(model: str) -> dict[str, float]:
    """Return parameters, tokens, bytes of weights and GFLOP of one image and one text of a checkpoint."""
    checkpoint = resolve_checkpoint(model)
    tensors = [
        record
        for path in weight_files(checkpoint.folder)
        for record in read_header(path)[0].values()
    ]
    architecture = find_architecture(str(checkpoint.folder))
    return {
        "parameters": sum(int(np.prod(record["shape"])) for record in tensors),
        "tokens": checkpoint.vocab_size,
        "bytes": sum(r["data_offsets"][1] - r["data_offsets"][0] for r in tensors),
        "gflop_per_image": architecture.flops_of_view / 1e9,
        "gflop_per_text": architecture.flops_of_text / 1e9,
    }


def size_lines(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Return a table of two results of sizes."""
    rows = [("", "before", "after")]
    for name, label in (
        ("parameters", "parameters"),
        ("tokens", "tokens"),
        ("bytes", "weights"),
        ("gflop_per_image", "GFLOP an image"),
        ("gflop_per_text", "GFLOP a text"),
    ):
        rows.append((label, _shown(name, before[name]), _shown(name, after[name])))
    return aligned(rows)


def _shown(name: str, value: float) -> str:
    if name == "bytes":
        return format_bytes(value)
    return f"{value:.3g}" if name.startswith("gflop") else f"{value:,}"
