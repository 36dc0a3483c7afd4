"""The command ``estimate``: what a build of so many images would take, without a corpus."""

import re
from decimal import Decimal
from typing import Annotated

from ..errors import SettingError
from .options import (
    CORPUS,
    HARDWARE,
    OUTPUT,
    TEACHER,
    AsJson,
    MaxNumPatches,
    option,
    path_option,
    print_found,
)

_COUNT = re.compile(
    r"(?P<number>[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,2})?)(?P<factor>[kKMGBT]?)"
)
_FACTORS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


def estimate(
    images: Annotated[str, option("COUNT", "Images: 1000000000, 1_000_000, 1e9, 100M or 1B.")],
    teacher: Annotated[
        str,
        path_option(
            "CHECKPOINT",
            "Name of a published SigLIP 2 checkpoint (so400m-patch14-384), or hub id or folder; its "
            "weights are not needed.",
        ),
    ],
    views: Annotated[int, option("N", "Views of each image.")] = 1,
    gpus: Annotated[int, option("N", "Workers, each with one GPU.")] = 1,
    gpu: Annotated[
        str,
        option(
            "NAME",
            "Kind of GPU: h100, h200, b200, a100, l40s, l4, a10, t4, rtx3090, rtx4090, mi300x, ...",
        ),
    ] = "h100",
    as_json: AsJson = False,
    captions_per_image: Annotated[
        float, option("N", "Mean number of captions of an image.", CORPUS)
    ] = 1.0,
    texts: Annotated[
        str | None, option("COUNT", "Unique captions.", CORPUS, default="all captions differ")
    ] = None,
    image_bytes: Annotated[
        str | None, option("COUNT", "Mean size of an image file.", CORPUS, default="100k, assumed")
    ] = None,
    images_per_tar: Annotated[str, option("COUNT", "Images in one tar.", CORPUS)] = "10k",
    max_num_patches: MaxNumPatches = None,
    shard_rows: Annotated[
        int | None, option("N", "Rows in one unit.", TEACHER, default="16384 / VIEWS")
    ] = None,
    targets: Annotated[str, option("float16|int8", "How targets are stored.", OUTPUT)] = "float16",
    patch_targets: Annotated[
        int | None,
        option(
            "GRID",
            "Also store the teacher's patches, pooled to GRID x GRID cells a view.",
            OUTPUT,
            default="none",
        ),
    ] = None,
    patch_dims: Annotated[
        int | None,
        option("N", "Values of a cell.", OUTPUT, default="the width of the teacher"),
    ] = None,
    keep_pixels: Annotated[
        int | None,
        option(
            "PIXELS",
            "Also keep each image, at most so many pixels on the short side.",
            OUTPUT,
            default="none are kept",
        ),
    ] = None,
    images_per_s: Annotated[
        float | None,
        option(
            "RATE",
            "Measured images per second of one worker with these views (build --dry-run --time).",
            HARDWARE,
            default="from peak and utilisation",
        ),
    ] = None,
    texts_per_s: Annotated[
        float | None,
        option(
            "RATE",
            "Measured texts per second of one worker.",
            HARDWARE,
            default="from peak and utilisation",
        ),
    ] = None,
    peak_tflops: Annotated[
        float | None,
        option(
            "TFLOPS",
            "Peak of a GPU that is not listed: dense bfloat16, by its data sheet.",
            HARDWARE,
            default="that of --gpu",
        ),
    ] = None,
    mfu: Annotated[
        float, option("SHARE", "Assumed model FLOPs utilisation, 0 to 1.", HARDWARE)
    ] = 0.4,
) -> None:
    """Estimate bytes, files, units, GPU-hours and traffic of a build, without a corpus.

    Each number is shown with its formula. For a corpus that exists, use siglip2-cache build --dry-run.
    """
    from ..precompute.estimate.config import EstimateConfig
    from ..precompute.estimate.estimate import estimate_build
    from ..precompute.estimate.report import estimate_json, estimate_lines

    found = estimate_build(
        EstimateConfig(
            teacher=teacher,
            num_images=parse_count("images", images),
            num_views=views,
            captions_per_image=captions_per_image,
            num_texts=None if texts is None else parse_count("texts", texts),
            shard_rows=shard_rows,
            max_num_patches=max_num_patches,
            num_gpus=gpus,
            gpu=gpu,
            peak_tflops=peak_tflops,
            mfu=mfu,
            targets=targets,
            patch_targets=patch_targets,
            patch_dims=patch_dims,
            keep_pixels=keep_pixels,
            images_per_s=images_per_s,
            texts_per_s=texts_per_s,
            image_bytes=None if image_bytes is None else parse_count("image bytes", image_bytes),
            images_per_tar=parse_count("images per tar", images_per_tar),
        )
    )
    print_found(estimate_json(found), estimate_lines(found), as_json)


def parse_count(what: str, text: str) -> int:
    """Return the whole number that a text such as 1_000_000, 1e9, 2.5e6, 100M or 1B stands for.

    Raises:
        SettingError: the text is no whole number.
    """
    found = _COUNT.fullmatch(text)
    value = Decimal(found["number"]) * _FACTORS[found["factor"]] if found else Decimal("0.5")
    if value != value.to_integral_value():
        raise SettingError(
            f"{what} {text!r} is not a whole number; write it as 1000000, 1_000_000, 1e6, 100k, 1M "
            "or 1B"
        )
    return int(value)
