"""The check of an exported folder before it is pushed: loaded anew, it computes what the training has."""

from pathlib import Path

import numpy as np

from ...errors import ExportError
from ..losses.pca_map import PcaMap
from .distiller import Distiller
from .evaluate_run import HeldOutEvaluation
from .resolve import Resolved

_LEAST = 0.999
"""Least cosine, of bfloat16 weights too; float32 has .9999 and more."""

_LEAST_OF_CACHE = 0.98
"""Least cosine to a cached embedding of the other tower, which may be of bfloat16."""

_NUM_IMAGES = 256


def check_export(
    resolved: Resolved, distiller: Distiller, pca: PcaMap | None, folder: Path, *, named: str
) -> None:
    """Compare a folder with the student it was written from, on held-out images, else on others.

    Args:
        resolved: settings of the training.
        distiller: the student.
        pca: the fixed map, where there is one.
        folder: the export.
        named: what an error calls it.

    Raises:
        ExportError: an embedding differs too much.
        TrainError: none of the images can be read.
    """
    split = "val" if resolved.val.num_images else "train"
    held_out = HeldOutEvaluation(resolved, pca, max_images=_NUM_IMAGES, split=split)
    expected, _ = held_out.embeddings(distiller, "student")
    found = held_out.exported(folder)
    for name, ours_ND, theirs_ND, is_trained in (
        ("image", expected.images_ND, found.images_ND, distiller.has_image),
        ("text", expected.texts_MD, found.texts_MD, distiller.has_text),
    ):
        if not np.isfinite(theirs_ND).any() and not is_trained:
            continue  # a tower alone
        cosine_N = (ours_ND * theirs_ND).sum(axis=1)[np.isfinite(ours_ND).all(axis=1)]
        least = _LEAST if is_trained else _LEAST_OF_CACHE
        if not (cosine_N >= least).all():
            raise ExportError(
                f"{named} does not compute what the training has: a cosine of {name} embeddings is "
                f"{cosine_N.min():.6g}, the limit {least:g}"
            )
