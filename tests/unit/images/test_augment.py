"""Operations on the pixels of a view, by hand or by Pillow alone."""

from dataclasses import replace

import numpy as np
import pytest
from kit.fakes import draw_image
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from siglip2_cache.images.augment import augment
from siglip2_cache.images.naflex import render_patches
from siglip2_cache.images.pixels import render_views
from siglip2_cache.store.format.augmentation import UNCHANGED, Augmentation
from siglip2_cache.store.format.views import ViewBox

PICTURE = draw_image(3, (48, 32))
EVERYTHING = Augmentation(1.25, 0.75, 1.5, -0.1, False, 0.02, 128)


def one_pixel(colour: tuple[int, int, int], operations: Augmentation) -> tuple[int, ...]:
    """The colour of a plain image after the operations."""
    changed = np.asarray(augment(Image.new("RGB", (4, 4), colour), operations))
    assert (changed == changed[0, 0]).all()
    return tuple(changed[0, 0].tolist())


@pytest.mark.parametrize(
    ("colour", "changes", "expected"),
    [
        pytest.param((100, 40, 0), {"brightness": 1.5}, (150, 60, 0), id="brighter"),
        pytest.param((200, 40, 0), {"brightness": 1.5}, (255, 60, 0), id="clipped"),
        pytest.param((80, 80, 80), {"contrast": 0.0}, (80, 80, 80), id="contrast of one colour"),
        pytest.param((90, 90, 90), {"saturation": 2.0}, (90, 90, 90), id="gray has no saturation"),
        pytest.param((255, 0, 0), {"saturation": 0.0}, (76, 76, 76), id="no saturation"),
        pytest.param((255, 0, 0), {"hue": 1 / 3}, (0, 255, 0), id="red to green"),
        pytest.param((255, 0, 0), {"hue": -1 / 3}, (0, 0, 255), id="red to blue"),
        pytest.param((255, 0, 0), {"grayscale": True}, (76, 76, 76), id="gray"),
        pytest.param((127, 128, 200), {"solarize": 128}, (127, 127, 55), id="solarized"),
        pytest.param((100, 40, 0), {"brightness": 1.5, "solarize": 128}, (105, 60, 0), id="order"),
    ],
)
def test_colours_change_as_computed_by_hand(
    colour: tuple[int, int, int], changes: dict[str, float], expected: tuple[int, ...]
) -> None:
    assert one_pixel(colour, replace(UNCHANGED, **changes)) == expected  # type: ignore[arg-type]


def test_contrast_is_about_the_mean_of_the_view() -> None:
    halves = np.zeros((2, 2, 3), np.uint8)
    halves[0], halves[1] = 50, 150  # mean 100
    found = np.asarray(augment(Image.fromarray(halves), replace(UNCHANGED, contrast=0.5)))
    assert found[:, 0, 0].tolist() == [75, 125]


@pytest.mark.parametrize("side", [32, 64])
def test_a_blur_has_the_same_extent_of_the_view_at_any_resolution(side: int) -> None:
    view = PICTURE.resize((side * 2, side))
    expected = view.filter(ImageFilter.GaussianBlur(0.05 * side))
    found = augment(view, replace(UNCHANGED, blur=0.05))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert found.tobytes() != view.tobytes()


def test_no_operation_leaves_the_pixels_as_they_are() -> None:
    assert augment(PICTURE, UNCHANGED) is PICTURE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("brightness", 1.3), ("contrast", 0.6), ("saturation", 0.5), ("hue", 0.1)),
        *(("grayscale", True), ("blur", 0.02), ("solarize", 128)),
    ],
)
def test_each_operation_is_replayed_bit_for_bit_on_the_resized_crop(
    name: str, value: float
) -> None:
    box = ViewBox(0.25, 0.25, 0.5, 0.5, True, replace(UNCHANGED, **{name: value}))  # type: ignore[arg-type]
    plain = replace(box, augmentation=UNCHANGED)

    def rendered(boxes: list[ViewBox]) -> NDArray[np.uint8]:
        return render_views(PICTURE, boxes, size=(16, 16), resample=2)

    both = rendered([plain, box])
    np.testing.assert_array_equal(both[1], rendered([box])[0])
    expected = augment(Image.fromarray(both[0]), box.augmentation)
    np.testing.assert_array_equal(both[1], np.asarray(expected))
    assert (both[0] != both[1]).any()


def test_patches_of_naflex_are_augmented_as_a_whole_view() -> None:
    box = ViewBox(0.0, 0.0, 1.0, 1.0, False, EVERYTHING)
    settings = {"patch_size": 4, "max_num_patches": 24, "resample": 2}
    found, [(rows, columns)] = render_patches(PICTURE, [box], **settings)  # type: ignore[arg-type]
    [whole] = render_views(PICTURE, [box], size=(rows * 4, columns * 4), resample=2)
    np.testing.assert_array_equal(found[0, 0].reshape(4, 4, 3), whole[:4, :4])
