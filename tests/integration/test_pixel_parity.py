"""Our pixels are those of the checkpoint's own processor, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from fakes import draw_image
from PIL import Image, ImageOps
from transformers import AutoImageProcessor

from siglip2_cache.siglip import SquashRecipe, resolve_checkpoint
from siglip2_cache.store.pixels import render_views
from siglip2_cache.store.views import WHOLE_IMAGE, ViewBox, pixel_box


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
