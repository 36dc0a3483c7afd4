"""The command ``estimate``: what a build of so many images would take, without a corpus."""

import re
from decimal import Decimal
from typing import Annotated

import typer

from ..errors import SettingError
from .options import CORPUS, HARDWARE, TEACHER, AsJson, path_option, print_found

_COUNT = re.compile(
    r"(?P<number>[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,2})?)(?P<factor>[kKMGBT]?)"
)
_FACTORS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


def estimate(
    images: Annotated[
        str,
        typer.Option(metavar="COUNT", help="Images: 1000000000, 1_000_000, 1e9, 100M or 1B."),
    ],
    teacher: Annotated[
        str,
        path_option(
            metavar="CHECKPOINT",
            help="Name of a published SigLIP 2 checkpoint (so400m-patch14-384), or hub id or folder; its "
            "weights are not needed.",
        ),
    ],
    views: Annotated[int, typer.Option(metavar="N", help="Views of each image.")] = 1,
    gpus: Annotated[int, typer.Option(metavar="N", help="Workers, each with one GPU.")] = 1,
    gpu: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Kind of GPU: h100, h200, b200, a100, l40s, l4, a10, t4, rtx3090, rtx4090, mi300x, ...",
        ),
    ] = "h100",
    as_json: AsJson = False,
    captions_per_image: Annotated[
        float,
        typer.Option(
            metavar="N", help="Mean number of captions of an image.", rich_help_panel=CORPUS
        ),
    ] = 1.0,
    texts: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="Unique captions.",
            show_default="all captions differ",
            rich_help_panel=CORPUS,
        ),
    ] = None,
    image_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="Mean size of an image file.",
            show_default="100k, assumed",
            rich_help_panel=CORPUS,
        ),
    ] = None,
    images_per_tar: Annotated[
        str,
        typer.Option(metavar="COUNT", help="Images in one tar.", rich_help_panel=CORPUS),
    ] = "10k",
    max_num_patches: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Most patches of a view; NaFlex checkpoints only.",
            show_default="as the checkpoint's processor",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    shard_rows: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Rows in one unit.",
            show_default="16384 / VIEWS",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    images_per_s: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Measured images per second of one worker with these views (build --dry-run --time).",
            show_default="from peak and utilisation",
            rich_help_panel=HARDWARE,
        ),
    ] = None,
    texts_per_s: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Measured texts per second of one worker.",
            show_default="from peak and utilisation",
            rich_help_panel=HARDWARE,
        ),
    ] = None,
    peak_tflops: Annotated[
        float | None,
        typer.Option(
            metavar="TFLOPS",
            help="Peak of a GPU that is not listed: dense bfloat16, by its data sheet.",
            show_default="that of --gpu",
            rich_help_panel=HARDWARE,
        ),
    ] = None,
    mfu: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Assumed model FLOPs utilisation, 0 to 1.",
            rich_help_panel=HARDWARE,
        ),
    ] = 0.4,
) -> None:
    """Estimate bytes, files, units, GPU-hours and traffic of a build, without a corpus.

    Each number is shown with its formula. For a corpus that exists, use siglip2-cache build --dry-run.
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
