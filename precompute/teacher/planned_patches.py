"""Settings of patch targets before their map is fitted: what can be told of a teacher without weights."""

import math

from ...errors import SettingError
from ...siglip import Architecture
from ...store.format.teacher_record import MAX_GRID, PatchSettings


def check_patches(grid: int | None, dim: int | None) -> None:
    """Refuse settings of patch targets that no cache can have.

    Raises:
        SettingError: a number is out of range, or there are dimensions without a grid.
    """
    if grid is not None and not 1 <= grid <= MAX_GRID:
        raise SettingError(f"patch targets must be 1 to {MAX_GRID}, got {grid}")
    if dim is not None and grid is None:
        raise SettingError(f"--patch-dims {dim} goes with --patch-targets")
    if dim is not None and dim < 1:
        raise SettingError(f"patch dims must be at least 1, got {dim}")


def planned_patches(arch: Architecture, grid: int | None, dim: int | None) -> PatchSettings | None:
    """Return the settings of patch targets before their map is fitted; None without a grid.

    Args:
        arch: the teacher's.
        grid: rows and columns of cells of a square view.
        dim: values of a cell; None: the width of the hidden states.

    Raises:
        SettingError: there are fewer patches, or the hidden states have fewer dimensions.
    """
    if grid is None:
        return None
    side = math.isqrt(arch.num_patches)
    if grid > side:
        raise SettingError(
            f"patch targets {grid} is more than the {side} patches on a side of {arch.name}"
        )
    if dim is not None and dim > arch.embed_dim:
        raise SettingError(
            f"patch dims {dim} is more than the width {arch.embed_dim} of the hidden states of {arch.name}"
        )
    return PatchSettings(
        grid=grid,
        dim=dim or arch.embed_dim,
        width=arch.embed_dim,
        rms=1.0,
        kept=1.0,
        num_images=0,
    )
