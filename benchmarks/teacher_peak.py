"""What a benchmark wants to know of a teacher: its pixels, its arithmetic, the most its device reaches."""

import json
import time
from pathlib import Path

import torch
from transformers import SiglipTextConfig, SiglipVisionConfig

from siglip2_cache.precompute.teacher import SiglipTeacher
from siglip2_cache.siglip import SquashRecipe


def squash(teacher: SiglipTeacher) -> SquashRecipe:
    """Return what a fixed-resolution teacher does with an image; the benchmarks take no other."""
    if not isinstance(teacher.image, SquashRecipe):
        raise SystemExit(
            f"{teacher.checkpoint.given} is a NaFlex teacher; name one of fixed resolution"
        )
    return teacher.image


def flops_of_image(checkpoint: Path) -> float:
    """Return the floating-point operations of one image, two a multiplication with its addition.

    Only matrix products are counted: patches, projections, attention, MLPs and the pooling head.
    """
    config = SiglipVisionConfig(
        **json.loads((checkpoint / "config.json").read_text())["vision_config"]
    )
    D, M, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    N = (config.image_size // config.patch_size) ** 2  # tokens
    patches = N * 3 * config.patch_size**2 * D
    layer = N * (4 * D * D + 2 * D * M) + 2 * N * N * D
    head = 2 * N * D * D + 2 * D * D + 2 * N * D + 2 * D * M
    return 2.0 * (patches + L * layer + head)


def flops_of_text(checkpoint: Path) -> float:
    """Return the floating-point operations of one text, counted as flops_of_image does."""
    config = SiglipTextConfig(**json.loads((checkpoint / "config.json").read_text())["text_config"])
    D, M, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    N = config.max_position_embeddings
    layer = N * (4 * D * D + 2 * D * M) + 2 * N * N * D
    return 2.0 * (L * layer + D * config.projection_size)


def matmul_flops_per_s(device: str, compute_dtype: str) -> float:
    """Return what one large matrix product reaches here: the best of a few."""
    size = 8192 if device.startswith("cuda") else 2048
    a = torch.randn(size, size, device=device, dtype=getattr(torch, compute_dtype))
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        a @ a
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
