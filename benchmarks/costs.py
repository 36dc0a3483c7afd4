"""Print what a build costs for a million images: the table of README.md.

    python benchmarks/costs.py

Nothing is measured here. Bytes follow from the format, arithmetic from the architecture; time is that
arithmetic divided by a rate, which for the H100 is assumed and for two CPU cores was measured.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from make_checkpoint import ARCHS, checkpoint_config
from teacher_peak import flops_of_image, flops_of_text

NUM_IMAGES = 1_000_000
"""Each with one caption of its own: a million unique texts."""

SAMPLE_BYTES, VIEW_BYTES, IMAGE_BYTES, TEXT_BYTES = 7, 16, 36, 34
"""Of the catalog's Parquet, compressed: a row of samples, a stored view, a row of images/, a text with its
caption. Expected of keys and captions as the web has them; yours may be longer."""

H100_PEAK, H100_SHARE = 989e12, 0.40
"""bfloat16 FLOP/s that the vendor states, without sparsity; and the share of them that we assume."""

TWO_CORES_IMAGES_PER_S = 3.68
"""What two CPU cores measured with so400m-patch14-224: benchmarks/results/build_xeon-2core_202611.md."""


@dataclass(frozen=True)
class Cost:
    """What a million images and texts cost with one teacher."""

    arch: str
    num_views: int
    target_bytes: int
    catalog_bytes: int
    flops: float

    def hours_at(self, flops_per_s: float) -> float:
        """Return the hours of one device of that rate."""
        return self.flops / flops_per_s / 3600


def cost_of(arch: str, num_views: int) -> Cost:
    """Return the cost of NUM_IMAGES images in that many views, and as many texts."""
    embed_dim = ARCHS[arch][0][0]
    flops_image, flops_text = _flops(arch)
    crops = VIEW_BYTES * num_views if num_views > 1 else 0  # a whole image has no box to store
    return Cost(
        arch=arch,
        num_views=num_views,
        target_bytes=NUM_IMAGES * (2 * embed_dim * num_views + 2 * embed_dim),  # float16
        catalog_bytes=NUM_IMAGES * (SAMPLE_BYTES + crops + IMAGE_BYTES + TEXT_BYTES),
        flops=NUM_IMAGES * (num_views * flops_image + flops_text),
    )


def table_lines() -> list[str]:
    """Return the table in Markdown."""
    two_cores = TWO_CORES_IMAGES_PER_S * _flops("so400m-patch14-224")[0]
    lines = [
        "| teacher | views | targets | catalog | arithmetic | one H100 at 40 % (assumed) | two CPU cores |",
        "|---|---|---|---|---|---|---|",
    ]
    for arch in ("base-patch16-224", "so400m-patch14-224", "so400m-patch14-384"):
        for num_views in (1, 5):
            cost = cost_of(arch, num_views)
            hours = cost.hours_at(H100_PEAK * H100_SHARE)
            days = cost.hours_at(two_cores) / 24
            lines.append(
                f"| {arch} | {num_views} | {cost.target_bytes / 1e9:.1f} GB | "
                f"{cost.catalog_bytes / 1e6:.0f} MB | {cost.flops / 1e15:,.0f} PFLOP | "
                f"{hours:.2f} h | {days:,.1f} days |"
            )
    return lines


def _flops(arch: str) -> tuple[float, float]:
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(checkpoint_config(arch)))
        return flops_of_image(Path(folder)), flops_of_text(Path(folder))


if __name__ == "__main__":
    print("\n".join(table_lines()))
