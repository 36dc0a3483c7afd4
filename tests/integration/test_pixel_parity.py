"""Our pixels are those of the checkpoint's own processor, bit for bit."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.fakes import draw_image
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers import AutoImageProcessor
from transformers.image_utils import load_image

from siglip2_cache.images.image import ImageRef, PixelFormat, decode_image
from siglip2_cache.images.image_bytes import ImageLocation
from siglip2_cache.images.pixels import render_views
from siglip2_cache.siglip import SquashRecipe, resolve_checkpoint
from siglip2_cache.store.format.views import WHOLE_IMAGE, ViewBox, pixel_box


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((640, 480), id="photo"),
        pytest.param((48, 400), id="tall"),
        pytest.param((64, 64), id="of the size already"),
        pytest.param((20, 12), id="enlarged"),
    ],
)
@pytest.mark.parametrize(
    "box",
    [
        pytest.param(WHOLE_IMAGE, id="whole"),
        pytest.param(ViewBox(0.1, 0.3, 0.5, 0.4), id="crop"),
        pytest.param(ViewBox(0.0, 0.25, 0.75, 0.75, True), id="mirrored crop"),
    ],
)
def test_a_view_has_the_pixels_that_the_processor_gives_of_it(
    tiny_checkpoint: Path, size: tuple[int, int], box: ViewBox
) -> None:
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    image = draw_image(7, size)
    recipe = checkpoint.image
    assert isinstance(recipe, SquashRecipe)
    [ours] = render_views(image, [box], size=recipe.size, resample=recipe.resample)
    view: Image.Image = image.crop(pixel_box(box, *size))
    view = ImageOps.mirror(view) if box.flip else view
    processor = AutoImageProcessor.from_pretrained(tiny_checkpoint)
    theirs = processor(view, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(np.rint((theirs * 0.5 + 0.5) * 255).astype(np.uint8), ours)
    normalised = (ours.astype(np.float32) * checkpoint.rescale_factor - 0.5) / 0.5
    np.testing.assert_allclose(normalised, theirs, rtol=0, atol=2e-7)


def our_view(checkpoint: Path, picture: Path) -> NDArray[np.uint8]:
    """What a build gives its teacher of a whole picture."""
    form = PixelFormat(num_views=1, recipe=resolve_checkpoint(str(checkpoint)).image)
    out = np.zeros(form.image_shape, np.uint8)
    ref = ImageRef(0, ImageLocation(path=picture), (WHOLE_IMAGE,))
    assert decode_image(ref, form, out).reason is None
    return out[0]


def their_view(processor: Any, picture: Path) -> NDArray[np.uint8]:
    """What the checkpoint's own processor gives of what load_image reads, as pipelines do."""
    with warnings.catch_warnings(action="ignore"):  # of transparency in bytes
        image = load_image(str(picture))
    given = processor(image, return_tensors="np")
    values = given["pixel_values"][0]
    pixels = np.rint((values * 0.5 + 0.5) * 255).astype(np.uint8)
    if "pixel_attention_mask" not in given:
        return pixels.transpose(1, 2, 0)
    return pixels * given["pixel_attention_mask"][0].astype(np.uint8)[:, None]


def with_flag(checkpoint: Path, folder: Path, flag: bool | str | None) -> Path:
    """A copy of a checkpoint whose processor says so of do_convert_rgb; "absent": nothing."""
    shutil.copytree(checkpoint, folder)
    path = folder / "preprocessor_config.json"
    settings = {**json.loads(path.read_text()), "do_convert_rgb": flag}
    if flag == "absent":
        del settings["do_convert_rgb"]
    path.write_text(json.dumps(settings))
    return folder


TRANSPARENT: dict[str, Callable[[Image.Image, Path], None]] = {
    "rgb.png": lambda image, path: image.save(path, transparency=image.getpixel((0, 0))),
    "gray.png": lambda image, path: image.convert("L").save(path, transparency=0),
    "palette.png": lambda image, path: image.quantize(8).save(path, transparency=1),
    "palette-bytes.png": lambda image, path: image.quantize(3).save(
        path, transparency=bytes([0, 128, 255])
    ),
    "bits.png": lambda image, path: image.convert("1").save(path, transparency=0),
    "frame.gif": lambda image, path: image.quantize(8).save(path, transparency=1),
    "rgba.png": lambda image, path: with_alpha(image).save(path),
    "la.png": lambda image, path: with_alpha(image).convert("LA").save(path),
    "rgba.webp": lambda image, path: with_alpha(image).save(path, lossless=True),
}


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


@pytest.mark.parametrize("flag", [True, False, None, "absent"])
@pytest.mark.parametrize("kind", ["tiny", "naflex"])
def test_transparency_is_what_the_processor_makes_of_it(
    kind: str,
    flag: bool | str | None,
    tiny_checkpoint: Path,
    naflex_checkpoint: Path,
    tmp_path: Path,
) -> None:
    given = tiny_checkpoint if kind == "tiny" else naflex_checkpoint
    checkpoint = with_flag(given, tmp_path / "checkpoint", flag)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    changed = set()
    for name, save in TRANSPARENT.items():
        picture = tmp_path / name
        image = draw_image(3, (40, 30))
        image.paste((0, 0, 0), (0, 0, 20, 15))
        save(image, picture)
        ours = our_view(checkpoint, picture)
        np.testing.assert_array_equal(ours, their_view(processor, picture), err_msg=name)
        if not np.array_equal(ours, our_view(given, picture)):
            changed.add(name)
    is_white = flag is True or (flag == "absent" and kind == "tiny")
    colours = {"rgb.png", "gray.png", "palette.png", "bits.png", "frame.gif"}
    assert changed == (colours if is_white else set())
