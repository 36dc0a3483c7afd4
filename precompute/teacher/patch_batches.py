"""Which NaFlex views share a forward pass: those of as many patches, so that none is padding."""

import numpy as np
from numpy.typing import NDArray


def group_by_patches(num_patches: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Return the views of each forward pass, as few passes as can be; a pure function of its input.

    As many passes as possible hold views of one number of patches and need neither padding nor a
    mask. What is left over of each number is put together with its nearest, fewest patches first,
    and only the last pass may have fewer than ``size`` views.

    Args:
        num_patches: (n,) patches of each view; 0 is no view and goes into no pass.
        size: views of one forward pass at most.
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
