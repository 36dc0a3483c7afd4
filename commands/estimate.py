"""The command ``plan``: what a build of so many images would take, before there is a corpus."""

import re
from decimal import Decimal
from typing import Annotated

import typer

from ..errors import SettingError
from .options import AsJson, path_option, print_found

_COUNT = re.compile(
    r"(?P<number>[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,2})?)(?P<factor>[kKMGBT]?)"
)
_FACTORS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


def plan(
    images: Annotated[str, typer.Option(help="Images: 1000000000, 1_000_000, 1e9, 100M, 1B.")],
    teacher: Annotated[
        str,
        path_option(
            help="Published SigLIP 2 checkpoint (so400m-patch14-384), folder of a checkpoint, or hub id; "
            "its weights are not needed."
        ),
    ],
    views: Annotated[int, typer.Option(help="Views of each image.")] = 1,
    captions_per_image: Annotated[
        float, typer.Option(help="Captions of an image, in the mean.")
    ] = 1.0,
    texts: Annotated[
        str | None, typer.Option(help="Unique captions. Default: all captions differ.")
    ] = None,
    shard_rows: Annotated[
        int | None, typer.Option(help="Rows in one unit. Default 16384 / VIEWS.")
    ] = None,
    max_num_patches: Annotated[
        int | None, typer.Option(help="Patches of a view at most, NaFlex checkpoints only.")
    ] = None,
    gpus: Annotated[int, typer.Option(help="Workers, of a GPU each.")] = 1,
    gpu: Annotated[
        str,
        typer.Option(
            help="h100, h200, b200, a100, l40s, l4, a10, t4, rtx3090, rtx4090, mi300x, ..."
        ),
    ] = "h100",
    peak_tflops: Annotated[
        float | None, typer.Option(help="Of another GPU: bfloat16, dense, by its data sheet.")
    ] = None,
    mfu: Annotated[
        float, typer.Option(help="Share of the peak that is reached. An assumption.")
    ] = 0.4,
    images_per_s: Annotated[
        float | None,
        typer.Option(
            help="Measured, of one worker with these views (build --dry-run --time): instead of peak and "
            "share."
        ),
    ] = None,
    texts_per_s: Annotated[float | None, typer.Option(help="Likewise.")] = None,
    image_bytes: Annotated[
        str | None, typer.Option(help="Of an image's file, in the mean. Default: 100k, assumed.")
    ] = None,
    images_per_tar: Annotated[str, typer.Option(help="Images in a tar of the corpus.")] = "10k",
    as_json: AsJson = False,
) -> None:
    """Reckon what a build would take: bytes, objects, units, GPU-hours, traffic, each with its formula.

    Nothing is read but, of a teacher that is not published, its settings. For a corpus that is at hand ask
    siglip2-cache build --dry-run.
    """
    from ..precompute.estimate.estimate import CapacityConfig
    from ..precompute.estimate.formulas import reckon
    from ..precompute.estimate.report import capacity_json, capacity_lines

    found = reckon(
        CapacityConfig(
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
            images_per_s=images_per_s,
            texts_per_s=texts_per_s,
            image_bytes=None if image_bytes is None else parse_count("image bytes", image_bytes),
            images_per_tar=parse_count("images per tar", images_per_tar),
        )
    )
    print_found(capacity_json(found), capacity_lines(found), as_json)


def parse_count(what: str, text: str) -> int:
    """Return a whole number as people write large ones: 1_000_000, 1e9, 2.5e6, 100M, 1B.

    Raises:
        SettingError: it is none.
    """
    found = _COUNT.fullmatch(text)
    value = Decimal(found["number"]) * _FACTORS[found["factor"]] if found else Decimal("0.5")
    if value != value.to_integral_value():
        raise SettingError(
            f"{what} {text!r} is not a whole number; write it as 1000000, 1_000_000, 1e6, 100k, 1M "
            "or 1B"
        )
    return int(value)
