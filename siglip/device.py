"""The device that a model runs on."""

from ..errors import SettingError


def resolve_device(device: str = "auto") -> str:
    """Return the device to run on.

    Raises:
        SettingError: torch sees no such device here.
    """
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
