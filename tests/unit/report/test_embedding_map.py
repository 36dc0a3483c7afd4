"""The map of a report: principal components, colours, and one picture a cell."""

import re

import numpy as np
import pytest

from siglip2_cache.report.embedding_map import CELL, HEIGHT, MAX_GROUPS, WIDTH, map_images

RNG = np.random.default_rng(0)


def test_the_axes_are_the_directions_of_largest_variance() -> None:
    rows_ND = np.zeros((200, 5), np.float32)
    rows_ND[:, 3] = RNG.normal(size=200) * 3
    rows_ND[:, 1] = RNG.normal(size=200)
    found = map_images(rows_ND, np.arange(200), [""] * 200, "")
    assert found is not None
    share = 9 * rows_ND[:, 3].var() / 9
    whole = rows_ND.var(axis=0).sum()
    assert found.explained[0] == pytest.approx(share / whole, rel=0.02)
    assert sum(found.explained) == pytest.approx(1)


def test_each_image_is_one_dot_inside_the_drawing_and_the_rarest_groups_share_a_colour() -> None:
    groups = [f"group {min(i % 20, 10)}" for i in range(100)]
    found = map_images(
        RNG.normal(size=(100, 8)).astype(np.float32), np.arange(100), groups, "label"
    )
    assert found is not None
    assert [dots.color for dots in found.dots] == list(range(MAX_GROUPS + 1))
    assert found.dots[0].name == "group 10"
    assert (found.dots[-1].name, found.dots[-1].count) == ("others", 15)
    places = [
        (int(x), int(y))
        for dots in found.dots
        for x, y in re.findall(r"M(-?\d+) (-?\d+)h0", dots.path)
    ]
    assert len(places) == sum(dots.count for dots in found.dots) == 100
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)


def test_each_cell_shows_one_picture_of_the_images_in_it() -> None:
    rows = np.arange(500) * 3
    found = map_images(RNG.normal(size=(500, 8)).astype(np.float32), rows, [None] * 500, "")
    assert found is not None
    cells = [(left, top) for _, left, top in found.pictures]
    assert len(set(cells)) == len(cells) > 20
    assert all(left % CELL == top % CELL == 0 for left, top in cells)
    assert all(left <= WIDTH - CELL and top <= HEIGHT - CELL for left, top in cells)
    assert {picture[0] for picture, *_ in found.pictures if isinstance(picture, tuple)} <= {*rows}


@pytest.mark.parametrize("rows_ND", [np.zeros((2, 4)), np.ones((9, 4))], ids=["two", "all equal"])
def test_there_is_no_map_of_two_images_or_of_equal_ones(rows_ND: np.ndarray) -> None:
    rows_ND = rows_ND.astype(np.float32)
    assert map_images(rows_ND, np.arange(len(rows_ND)), [""] * len(rows_ND), "") is None
