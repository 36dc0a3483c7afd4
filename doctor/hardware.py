"""GPUs, cores and the speed of decoding."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from ..cores import num_cores
from ..formatting import format_bytes, format_count
from ..images.pixels import decode_for_views, render_views
from ..store.format.views import WHOLE_IMAGE
from .report import Check, Fault

_LEAST_DECODED_PER_S = 50
"""Photographs of 640 x 426 a second and core. A core of 2015 decodes more than 150."""

_TEACHER_IMAGES_PER_S = 1_400
"""What one H100 at 40 % takes with SO400M at 224 px, docs/explanation/cost.md."""


def check_gpus(torch: Any, *, root: Path = Path("/")) -> Check:
    """Return the GPUs that torch uses, each after a product of matrices on it.

    Args:
        torch: the module.
        root: folder of /dev; tests pass their own.
    """
    if not torch.cuda.is_available():
        return _check_without_cuda(torch, root)
    gpus: list[dict[str, Any]] = []
    faults: list[Fault] = []
    notes: list[str] = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        capability = (properties.major, properties.minor)
        gpu: dict[str, Any] = {"name": properties.name, "num_bytes": properties.total_memory}
        gpu["compute_capability"] = ".".join(map(str, capability))
        try:
            ones = torch.ones((16, 16), device=f"cuda:{number}")
            is_right = bool((ones @ ones == 16).all())
            gpu["num_bytes_free"] = torch.cuda.mem_get_info(number)[0]
            if not is_right:
                raise RuntimeError("a product of matrices is wrong")
        except RuntimeError as error:
            faults.append(_unusable(f"cuda:{number} ({properties.name})", error, torch, capability))
        if capability < (8, 0):
            notes.append(f"cuda:{number} has no fast bfloat16; use --dtype float16 in builds")
        gpus.append(gpu)
    shown = [_gpu_line(gpu) for gpu in gpus]
    found = (
        f"{shown[0]}, {len(gpus)} times" if len(set(shown)) == 1 < len(gpus) else "; ".join(shown)
    )
    return Check(
        name="gpus",
        found=f"{found}; CUDA {torch.version.cuda}",
        values={"cuda": torch.version.cuda, "gpus": gpus},
        faults=tuple(faults),
        notes=tuple(notes),
    )


def _gpu_line(gpu: dict[str, Any]) -> str:
    free = gpu.get("num_bytes_free")
    rest = "" if free is None else f", {format_bytes(free)} free"
    return f"{gpu['name']}, {format_bytes(gpu['num_bytes'])}{rest}"


def _unusable(what: str, error: RuntimeError, torch: Any, capability: tuple[int, int]) -> Fault:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return Fault(
            problem=f"{what} has no memory left",
            remedy="end the other processes on it (nvidia-smi lists them), or name another --device",
        )
    line = (str(error).strip() or "failed").splitlines()[0]
    return Fault(
        problem=f"{what} does not compute ({line})",
        remedy=f"install a build of torch for compute capability {capability[0]}.{capability[1]} and "
        "the driver that it needs",
    )


def _check_without_cuda(torch: Any, root: Path) -> Check:
    mps = getattr(torch.backends, "mps", None)
    if mps is not None and mps.is_available():
        return Check(name="gpus", found="Apple GPU (mps)", values={"cuda": None, "gpus": ["mps"]})
    faults: list[Fault] = []
    if (root / "dev/nvidiactl").exists():
        if torch.version.cuda is None:
            problem = (
                f"this machine has an NVIDIA GPU and torch {torch.__version__} is for CPUs only"
            )
            remedy = "pip install --force-reinstall torch installs a build for CUDA"
        else:
            problem = f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no GPU"
            remedy = (
                "compare with nvidia-smi; a driver that is too old needs an update or an older torch, and "
                "CUDA_VISIBLE_DEVICES may hide the GPU"
            )
        faults.append(Fault(problem=problem, remedy=remedy))
    return Check(
        name="gpus",
        found="none; builds and trainings run on the CPU",
        values={"cuda": torch.version.cuda, "gpus": []},
        faults=tuple(faults),
    )


def check_decoding(
    *,
    num_gpus: int,
    rate: float | None = None,
    cores: int | None = None,
    has_feature: Callable[[str], Any] = features.check,
) -> Check:
    """Return how many photographs a second the cores decode.

    Args:
        num_gpus: GPUs that the cores have to feed.
        rate: images per second of one core; None: measured.
        cores: cores that this process may use; None: as affinity and cgroup say.
        has_feature: whether Pillow was built with a library.
    """
    rate = measured_decode_rate() if rate is None else rate
    cores = num_cores() if cores is None else cores
    faults: list[Fault] = []
    notes: list[str] = []
    if not has_feature("libjpeg_turbo"):
        faults.append(
            Fault(
                problem="Pillow was built without libjpeg-turbo, so JPEGs decode several times slower",
                remedy="pip install --force-reinstall --only-binary :all: pillow",
            )
        )
    if rate < _LEAST_DECODED_PER_S:
        faults.append(
            Fault(
                problem=f"one core decodes {rate:,.0f} photographs per second, expected "
                f"{_LEAST_DECODED_PER_S} at least",
                remedy="end other work on this machine, or ask why its cores are slow (quota, throttling)",
            )
        )
    needed = _TEACHER_IMAGES_PER_S * num_gpus
    if num_gpus and rate * cores < needed:
        notes.append(
            f"{format_count(num_gpus, 'GPU')} may wait for pixels: at 224 px a fast one takes "
            f"{_TEACHER_IMAGES_PER_S:,} images per second; --decode scaled helps with large pictures, "
            "build --keep-pixels with trainings"
        )
    return Check(
        name="decoding",
        found=f"{rate:,.0f} photographs of 640 x 426 per second and core, {format_count(cores, 'core')}",
        values={"images_per_s_and_core": round(rate, 1), "cores": cores},
        faults=tuple(faults),
        notes=tuple(notes),
    )


def measured_decode_rate(seconds: float = 0.3) -> float:
    """Return how many JPEGs of 640 x 426 one core decodes to 224 px in a second, as a build does."""
    size, view = (224, 224), (WHOLE_IMAGE,)
    rows, columns = np.mgrid[0:426, 0:640]
    waves = np.stack([np.sin(rows / n) * np.cos(columns / (n + 4)) for n in (7, 11, 17)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 8, waves.shape)
    picture = np.clip(128 + 100 * waves + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    data, done, started = file.getvalue(), 0, time.process_time()
    while time.process_time() - started < seconds:
        image, _ = decode_for_views(
            data, view, view_size=lambda height, width: size, decode="exact"
        )
        render_views(image, view, size=size, resample=Image.Resampling.BILINEAR)
        done += 1
    return done / (time.process_time() - started)
