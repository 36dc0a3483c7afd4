"""Augmentation of views: photometric operations, stored with each view as numbers.

They are drawn from (seed, key, view) as the boxes are, so planning reads no pixels, and every machine draws
the same. Teacher and student replay the stored numbers.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import SettingError

NO_SOLARIZE = 256
_SOLARIZE_FROM = 128
_SIGMAS = (0.1 / 224, 2 / 224)
"""Smallest and largest sigma of a blur, as fractions of the shorter side: DINOv2's at 224 pixels."""

_NUM_DRAWS = 8


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The operations of one view, in the order in which they are applied (float32 values)."""

    brightness: float = 1.0
    """Factor; 1 changes nothing."""

    contrast: float = 1.0
    """Factor."""

    saturation: float = 1.0
    """Factor."""

    hue: float = 0.0
    """Shift of the hue, as a fraction of the colour circle."""

    grayscale: bool = False
    """Whether colours become gray."""

    blur: float = 0.0
    """Sigma of a Gaussian, as a fraction of the shorter side of the view; 0: none."""

    solarize: int = NO_SOLARIZE
    """Values from this one on are inverted, 0 to 256; 256: none."""


COLUMNS: dict[str, Any] = {
    each.name: {"grayscale": np.bool_, "solarize": np.int16}.get(each.name, np.float32)
    for each in fields(Augmentation)
}
"""Columns of the table ``views``, in the order of Augmentation."""

UNCHANGED = Augmentation()


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationPolicy:
    """How augmentation was drawn, in torchvision's terms; the default is none."""

    brightness: float = 0.0
    """Factors are uniform in 1 - brightness to 1 + brightness; at most 1."""

    contrast: float = 0.0
    """As brightness."""

    saturation: float = 0.0
    """As brightness."""

    hue: float = 0.0
    """Shifts are uniform in -hue to hue; at most 0.5."""

    jitter: float = 0.8
    """Probability of these four together."""

    grayscale: float = 0.0
    """Probability."""

    blur: float = 0.0
    """Probability."""

    solarize: float = 0.0
    """Probability."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            most = 0.5 if name == "hue" else 1
            if not 0 <= value <= most:
                raise SettingError(f"augment {name} must be 0 to {most}, got {value}")

    @property
    def is_none(self) -> bool:
        """Whether no view is changed."""
        return not any(value for name, value in asdict(self).items() if name != "jitter")

    def __str__(self) -> str:
        """Return the settings that are not 0, such as ``brightness 0.4, jitter 0.8``; or ``none``."""
        if self.is_none:
            return "none"
        return ", ".join(f"{name} {value:g}" for name, value in asdict(self).items() if value)


PRESETS = {
    "none": AugmentationPolicy(),
    "strong": AugmentationPolicy(
        brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, grayscale=0.2, blur=0.5, solarize=0.2
    ),
}
"""Named policies. Strong has DINOv2's jitter and grayscale, the blur of its local crops, and the solarize of
its second global crop. Source: facebookresearch/dinov2, ``dinov2/data/augmentations.py``."""


def parse_augmentation(given: Sequence[str]) -> AugmentationPolicy:
    """Return the policy of some words, a preset or ``OPERATION=VALUE`` each; later ones change earlier ones.

    Raises:
        SettingError: a word is neither, or a value is out of range.
    """
    policy = PRESETS["none"]
    names = [each.name for each in fields(AugmentationPolicy)]
    for word in given:
        name, is_value, text = word.partition("=")
        if word in PRESETS:
            policy = PRESETS[word]
            continue
        try:
            value = float(text)
        except ValueError:
            value = None
        if not is_value or name not in names or value is None:
            raise SettingError(
                f"augment {word!r} is not {', '.join(PRESETS)} or OPERATION=VALUE, such as hue=0.1, of "
                f"{', '.join(names)}"
            )
        policy = replace(policy, **{name: value})
    return policy


def draw_augmentations(
    policy: AugmentationPolicy, messages: Iterable[bytes]
) -> tuple[NDArray[Any], ...]:
    """Return the operations of a view for each message, as COLUMNS."""
    hashes = (
        hashlib.blake2b(each, digest_size=8 * _NUM_DRAWS, person=b"siglip2-augm-1").digest()
        for each in messages
    )
    u_N8 = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, _NUM_DRAWS) / 2.0**64
    is_jittered = u_N8[:, 0] < policy.jitter
    factors = [
        np.where(is_jittered, 1 + (2 * u_N - 1) * strength, 1.0)
        for strength, u_N in zip(
            (policy.brightness, policy.contrast, policy.saturation), u_N8.T[1:4], strict=True
        )
    ]
    hue = np.where(is_jittered, (2 * u_N8[:, 4] - 1) * policy.hue, 0.0)
    low, high = _SIGMAS
    sigma = low + (high - low) * (u_N8[:, 6] / (policy.blur or 1.0))
    drawn = (
        *factors,
        hue,
        u_N8[:, 5] < policy.grayscale,
        np.where(u_N8[:, 6] < policy.blur, sigma, 0.0),
        np.where(u_N8[:, 7] < policy.solarize, _SOLARIZE_FROM, NO_SOLARIZE),
    )
    return tuple(each.astype(dtype) for each, dtype in zip(drawn, COLUMNS.values(), strict=True))
