"""Print what a build costs for a million images: the table of README.md.

    python benchmarks/costs.py

Nothing is measured here. Bytes follow from the format, arithmetic from the architecture, both by the
formulas of the package (siglip2-cache estimate shows them); time is that arithmetic divided by a rate,
which for the H100 is assumed and for two CPU cores was measured.
"""

from dataclasses import dataclass

from siglip2_cache.precompute.estimate.costs import IMAGE_BYTES, PEAK_TFLOPS, Workload, array_bytes
from siglip2_cache.precompute.planning.config import default_shard_rows
from siglip2_cache.siglip import find_architecture
from siglip2_cache.store.format.layout import MODALITIES

NUM_IMAGES = 1_000_000
"""Each with one caption of its own: a million unique texts."""

H100_PEAK, H100_SHARE = PEAK_TFLOPS["h100"] * 1e12, 0.40
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
    architecture = find_architecture(arch)
    workload = Workload(
        num_images=NUM_IMAGES,
        num_captions=NUM_IMAGES,
        num_texts=NUM_IMAGES,
        num_views=num_views,
        num_files=NUM_IMAGES // 10_000,
    )
    shard_rows = default_shard_rows(num_views)
    arrays = [workload.array(m, architecture.embed_dim, shard_rows) for m in MODALITIES]
    return Cost(
        arch=arch,
        num_views=num_views,
        target_bytes=sum(map(array_bytes, arrays)),
        catalog_bytes=sum(workload.catalog_bytes.values()) + IMAGE_BYTES * NUM_IMAGES,
        flops=workload.flops_of_images(architecture) + workload.flops_of_texts(architecture),
    )


def table_lines() -> list[str]:
    """Return the table in Markdown."""
    two_cores = TWO_CORES_IMAGES_PER_S * find_architecture("so400m-patch14-224").flops_of_view
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


if __name__ == "__main__":
    print("\n".join(table_lines()))
