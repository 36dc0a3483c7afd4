"""Grouping NaFlex views with equal numbers of patches into forward passes, to avoid padding."""

import numpy as np
from numpy.typing import NDArray


def group_by_patches(num_patches: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Return the views of each forward pass, in as few passes as possible; a pure function of its input.

    As many passes as possible have views of one number of patches, and so need neither padding nor a mask.
    The remaining views are sorted by their number of patches and share passes; only the last pass may have
    fewer than ``size`` views.

    Args:
        num_patches: (n,) patches of each view; views with 0 are in no pass.
        size: most views of one forward pass.
    """
    full: list[NDArray[np.int64]] = []
    left: list[NDArray[np.int64]] = []
    for count in np.unique(num_patches[num_patches > 0]):
        views = np.flatnonzero(num_patches == count)
        whole = len(views) - len(views) % size
        full += [views[i : i + size] for i in range(0, whole, size)]
        left.append(views[whole:])
    rest = np.concatenate(left) if left else np.empty(0, np.int64)
    return full + [rest[i : i + size] for i in range(0, len(rest), size)]
