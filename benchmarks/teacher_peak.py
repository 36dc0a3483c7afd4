"""What a benchmark wants to know of a teacher: its pixels, the most its device reaches."""

import time

import torch

from siglip2_cache.precompute.teacher.siglip_teacher import SiglipTeacher
from siglip2_cache.siglip import SquashRecipe


def squash(teacher: SiglipTeacher) -> SquashRecipe:
    """Return what a fixed-resolution teacher does with an image; the benchmarks take no other."""
    if not isinstance(teacher.image, SquashRecipe):
        raise SystemExit(
            f"{teacher.checkpoint.given} is a NaFlex teacher; name one of fixed resolution"
        )
    return teacher.image


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
