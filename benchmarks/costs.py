"""Print what a build costs for a million images: the table of docs/explanation/cost.md.

    python benchmarks/costs.py

Nothing is measured here. Bytes follow from the format and arithmetic from the architecture, by the formulas
of ``siglip2-cache estimate``; time is that arithmetic divided by a rate, which is assumed for the H100 and
was measured for two CPU cores.
"""

from dataclasses import dataclass

from siglip2_cache.precompute.estimate.config import PEAK_TFLOPS, EstimateConfig
from siglip2_cache.precompute.estimate.estimate import estimate_build
from siglip2_cache.siglip import find_architecture

NUM_IMAGES = 1_000_000
"""Each with one caption of its own: a million unique texts."""

H100_FLOPS_PER_S = PEAK_TFLOPS["h100"] * 1e12 * 0.40
"""The vendor's dense bfloat16 peak, of which 40 % is assumed to be reached."""

TWO_CORES_IMAGES_PER_S = 3.68
"""Measured on two CPU cores with so400m-patch14-224: benchmarks/results/build_xeon-2core_202611.md."""


@dataclass(frozen=True)
class Cost:
    """What a million images and texts cost with one teacher."""

    arch: str
    num_views: int
    target_bytes: float
    int8_bytes: float
    catalog_bytes: float
    flops: float

    def hours_at(self, flops_per_s: float) -> float:
        """Return the hours of one device of that rate."""
        return self.flops / flops_per_s / 3600


def cost_of(arch: str, num_views: int) -> Cost:
    """Return the cost of NUM_IMAGES images in that many views, and as many texts."""
    found, int8 = (
        estimate_build(
            EstimateConfig(
                teacher=arch, num_images=NUM_IMAGES, num_views=num_views, targets=targets
            )
        )
        for targets in ("float16", "int8")
    )
    target_bytes = found["image_targets"] + found["text_targets"]
    return Cost(
        arch=arch,
        num_views=num_views,
        target_bytes=target_bytes,
        int8_bytes=int8["image_targets"] + int8["text_targets"],
        catalog_bytes=found["bytes"] - target_bytes - found["unit_records"],
        flops=found["all_images"] + found["all_texts"],
    )


def table_lines() -> list[str]:
    """Return the table in Markdown."""
    two_cores = TWO_CORES_IMAGES_PER_S * find_architecture("so400m-patch14-224").flops_of_view
    lines = [
        "| teacher | views | targets | as int8 | catalog | arithmetic | "
        "one H100 at 40 % (assumed) | two CPU cores |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arch in ("base-patch16-224", "so400m-patch14-224", "so400m-patch14-384"):
        for num_views in (1, 5):
            cost = cost_of(arch, num_views)
            hours = cost.hours_at(H100_FLOPS_PER_S)
            days = cost.hours_at(two_cores) / 24
            lines.append(
                f"| {arch} | {num_views} | {cost.target_bytes / 1e9:.1f} GB | "
                f"{cost.int8_bytes / 1e9:.1f} GB | "
                f"{cost.catalog_bytes / 1e6:.0f} MB | {cost.flops / 1e15:,.0f} PFLOP | "
                f"{hours:.2f} h | {days:,.1f} days |"
            )
    return lines


if __name__ == "__main__":
    print("\n".join(table_lines()))
