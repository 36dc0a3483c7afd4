"""The device and the dtype of the forward pass, and copies to the device."""

from typing import TYPE_CHECKING, Any

from ..errors import SettingError
from .checkpoint import COMPUTE_DTYPES, Checkpoint

if TYPE_CHECKING:
    from torch import Tensor


def resolve_device(device: str = "auto") -> str:
    """Return the device to run on.

    Args:
        device: its name; auto: CUDA, else MPS, else the CPU.

    Raises:
        SettingError: torch has no such device.
    """
    if device == "cpu":
        return device  # without torch, which takes seconds to load
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, is_there in available.items() if is_there)
    kind, _, number = device.partition(":")
    is_there = available.get(kind, False)
    if number:
        is_there = is_there and kind == "cuda" and number.isdecimal()
        is_there = is_there and int(number) < torch.cuda.device_count()
    if not is_there:
        here = ", ".join(name for name, is_there in available.items() if is_there)
        raise SettingError(f"device {device!r} is not available here; this machine has {here}")
    return device


def to_device(tensor: "Tensor", device: Any) -> "Tensor":
    """Return a tensor of the host on a device; a CUDA device gets it without waiting for queued work.

    torch keeps freed pinned memory and gives it out again once its copy is done.
    """
    import torch

    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that device or host memory ran out."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def resolve_compute_dtype(checkpoint: Checkpoint, device: str, compute_dtype: str = "auto") -> str:
    """Return the dtype of the forward pass, without importing torch.

    Args:
        checkpoint: the checkpoint.
        device: the device, from resolve_device.
        compute_dtype: a dtype; auto: bfloat16 on CUDA, elsewhere the dtype of the stored weights.

    Raises:
        SettingError: the dtype is not one of COMPUTE_DTYPES.
    """
    if compute_dtype == "auto":
        return "bfloat16" if device.startswith("cuda") else checkpoint.stored_dtype
    if compute_dtype not in COMPUTE_DTYPES:
        raise SettingError(
            f"dtype {compute_dtype!r} is not one of auto, {', '.join(COMPUTE_DTYPES)}"
        )
    return compute_dtype
