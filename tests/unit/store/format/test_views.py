"""Views: the same boxes everywhere, and the pixels they mean."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip2_cache.errors import SettingError
from siglip2_cache.store.format.views import (
    WHOLE_IMAGE,
    ViewBox,
    ViewPolicy,
    draw_view,
    draw_views,
    pixel_box,
)

POLICY = ViewPolicy(num_views=4)

# Committed numbers: a cache holds targets of exactly these crops, so they may never change.
GOLDEN = [
    # key, view, top, left, height, width, flip, pixel box of 640 x 480
    (
        *("a", 1, 0.004429952707141638, 0.048636168241500854, 0.99285888671875),
        *(0.9461626410484314, True, (31, 2, 637, 479)),
    ),
    (
        *("a", 2, 0.27620869874954224, 0.2910643219947815, 0.5312821865081787),
        *(0.6665660738945007, False, (186, 133, 613, 388)),
    ),
    (
        *("a", 3, 0.18556900322437286, 0.001133158104494214, 0.7616863250732422),
        *(0.9875935316085815, False, (1, 89, 633, 455)),
    ),
    (
        *("photos/0001", 1, 0.09021982550621033, 0.01898854970932007, 0.6228966116905212),
        *(0.7838503122329712, True, (12, 43, 514, 342)),
    ),
    (
        *("Ä", 1, 0.015964634716510773, 0.028252756223082542, 0.9546623229980469),
        *(0.8733688592910767, True, (18, 8, 577, 466)),
    ),
]

policies = st.builds(
    ViewPolicy,
    num_views=st.just(256),
    seed=st.integers(-(2**63), 2**63),
    min_area=st.floats(0.01, 1),
    max_aspect=st.floats(1, 8),
    flip_probability=st.floats(0, 1),
)


@pytest.mark.parametrize(
    ("key", "view", "top", "left", "height", "width", "flip", "pixels"), GOLDEN
)
def test_the_boxes_are_those_of_every_other_machine(
    key: str,
    view: int,
    top: float,
    left: float,
    height: float,
    width: float,
    flip: bool,
    pixels: tuple[int, int, int, int],
) -> None:
    box = draw_view(POLICY, key, view)
    assert box == ViewBox(top, left, height, width, flip)
    assert pixel_box(box, 640, 480) == pixels


def test_view_0_is_the_whole_image() -> None:
    assert draw_view(POLICY, "a", 0) == WHOLE_IMAGE == ViewBox(0.0, 0.0, 1.0, 1.0, False)


def test_boxes_do_not_depend_on_the_order_they_are_drawn_in() -> None:
    places = list(itertools.product(["a", "b", "c"], range(4)))
    forwards = {place: draw_view(POLICY, *place) for place in places}
    backwards = {place: draw_view(POLICY, *place) for place in reversed(places)}
    assert forwards == backwards


def test_seed_key_and_view_each_give_another_box() -> None:
    boxes = {
        draw_view(ViewPolicy(num_views=3, seed=seed), key, view)
        for seed, key, view in itertools.product([0, 1, 11], ["a", "b", "1a"], [1, 2])
    }
    assert len(boxes) == 18


@given(policy=policies, key=st.text(), view=st.integers(1, 255))
def test_a_box_lies_in_the_unit_square_with_the_area_and_aspect_asked(
    policy: ViewPolicy, key: str, view: int
) -> None:
    box = draw_view(policy, key, view)
    rounding = 1e-6  # the fractions are rounded to float32
    for start, extent in ((box.top, box.height), (box.left, box.width)):
        assert start >= 0
        assert 0 < extent <= 1
        assert start + extent <= 1 + rounding
    assert policy.min_area * (1 - rounding) <= box.height * box.width <= 1
    aspect = box.width / box.height
    assert 1 / policy.max_aspect * (1 - rounding) <= aspect <= policy.max_aspect * (1 + rounding)


def test_areas_fill_their_range_and_flips_have_their_share() -> None:
    policy = ViewPolicy(num_views=2, min_area=0.25, flip_probability=0.25)
    boxes = [draw_view(policy, str(i), 1) for i in range(4000)]
    areas = sorted(box.height * box.width for box in boxes)
    assert areas[0] == pytest.approx(0.25, abs=0.01)
    assert areas[2000] == pytest.approx(0.625, abs=0.02)  # the middle of 0.25 to 1
    assert areas[-1] == pytest.approx(1, abs=0.01)
    wide = sum(box.width > box.height for box in boxes) / len(boxes)
    flips = sum(box.flip for box in boxes) / len(boxes)
    assert wide == pytest.approx(0.5, abs=0.03)  # 3 standard deviations are 0.024
    assert flips == pytest.approx(0.25, abs=0.025)


@pytest.mark.parametrize(("probability", "flips"), [(0.0, {False}), (1.0, {True})])
def test_flips_can_be_all_or_none(probability: float, flips: set[bool]) -> None:
    policy = ViewPolicy(num_views=2, flip_probability=probability)
    assert {draw_view(policy, str(i), 1).flip for i in range(100)} == flips


@given(width=st.integers(1, 100_000), height=st.integers(1, 100_000))
def test_the_whole_image_is_every_pixel(width: int, height: int) -> None:
    assert pixel_box(WHOLE_IMAGE, width, height) == (0, 0, width, height)


@given(
    policy=policies,
    key=st.text(),
    size=st.tuples(st.integers(1, 100_000), st.integers(1, 100_000))
    | st.sampled_from([(1, 1), (1, 4000), (4000, 1)]),
)
def test_a_pixel_box_lies_in_the_image_and_is_never_empty(
    policy: ViewPolicy, key: str, size: tuple[int, int]
) -> None:
    width, height = size
    left, top, right, bottom = pixel_box(draw_view(policy, key, 1), width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize(
    ("box", "width", "height", "expected"),
    [
        (ViewBox(0.25, 0.5, 0.25, 0.5), 8, 4, (4, 1, 8, 2)),
        (ViewBox(0.25, 0.5, 0.25, 0.5), 4, 8, (2, 2, 4, 4)),
        (ViewBox(0.0, 0.0, 0.5, 0.5), 1, 1, (0, 0, 1, 1)),
        (ViewBox(0.999, 0.999, 0.001, 0.001), 1, 4000, (0, 3996, 1, 4000)),
        (
            ViewBox(0.9999, 0.0, 0.0001, 1.0),
            10,
            10,
            (0, 9, 10, 10),
        ),  # rounds to nothing: the last row
        (ViewBox(0.125, 0.125, 0.25, 0.25), 4, 4, (1, 1, 2, 2)),  # halves go up
    ],
)
def test_fractions_become_pixels_by_rounding_their_ends(
    box: ViewBox, width: int, height: int, expected: tuple[int, int, int, int]
) -> None:
    assert pixel_box(box, width, height) == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_views": 0}, "views must be 1 to 256, got 0"),
        ({"num_views": 257}, "views must be 1 to 256, got 257"),
        ({"min_area": 0.0}, r"view min area must be above 0 and at most 1, got 0\.0"),
        ({"min_area": 1.5}, r"view min area must be above 0 and at most 1, got 1\.5"),
        ({"max_aspect": 0.5}, r"view max aspect must be at least 1, got 0\.5"),
        ({"flip_probability": -0.1}, r"flip probability must be 0 to 1, got -0\.1"),
    ],
)
def test_a_policy_out_of_bounds_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ViewPolicy(**wrong)  # type: ignore[arg-type]


@given(
    policies,
    st.lists(st.text(max_size=8), max_size=4),
    st.integers(1, 6),
)
def test_many_samples_at_once_have_the_boxes_of_each(
    policy: ViewPolicy, keys: list[str], num_views: int
) -> None:
    policy = replace(policy, num_views=num_views)
    columns = draw_views(policy, keys)
    for i, key in enumerate(keys):
        for view in range(num_views):
            box = ViewBox(*(column[i, view].item() for column in columns.values()))
            assert box == draw_view(policy, key, view)
    assert {column.shape for column in columns.values()} == {(len(keys), num_views)}
    assert list(columns) == ["top", "left", "height", "width", "flip"]
