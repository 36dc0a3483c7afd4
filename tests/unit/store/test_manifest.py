"""Rows and units: the arithmetic that every reader repeats."""

import pytest

from siglip2_cache.store.manifest import Generation, Manifest, Span
from siglip2_cache.store.views import ViewPolicy


def make_manifest(shard_rows: int, *rows: tuple[int, int]) -> Manifest:
    """A manifest of generations that planned (first, count) images and no texts."""
    generations = [
        Generation(
            number=number,
            format_version=2,
            rows=Span(first=first, count=count),
            text_rows=Span(first=0, count=0),
            parts=(),
            sources=(),
            digest="",
            num_new_captions=0,
            num_problems=0,
            prompts_fingerprint="",
        )
        for number, (first, count) in enumerate(rows)
    ]
    return Manifest(shard_rows=shard_rows, views=ViewPolicy(), generations=tuple(generations))


def units(manifest: Manifest) -> list[tuple[int, int, int]]:
    """(number, first row, rows) of every image unit."""
    return [(u.number, u.rows.first, u.rows.count) for u in manifest.units("image")]


def test_the_example_of_the_format_page() -> None:
    manifest = make_manifest(4, (0, 5), (8, 2))
    assert units(manifest) == [(0, 0, 4), (1, 4, 1), (2, 8, 2)]
    assert manifest.num_rows("image") == 10
    assert manifest.count("image") == 7


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0, 0)], 0),
        ([(0, 1)], 4),
        ([(0, 4)], 4),
        ([(0, 5)], 8),
        ([(0, 5), (8, 4)], 12),
        ([(0, 5), (8, 0)], 8),  # a generation that only planned texts
    ],
)
def test_the_next_generation_starts_at_the_next_unit(
    rows: list[tuple[int, int]], expected: int
) -> None:
    assert make_manifest(4, *rows).next_free_row("image") == expected


def test_a_generation_without_rows_has_no_units_and_no_length() -> None:
    manifest = make_manifest(4, (0, 3), (4, 0))
    assert units(manifest) == [(0, 0, 3)]
    assert manifest.num_rows("image") == 3
    assert (manifest.num_rows("text"), manifest.count("text")) == (0, 0)
    assert list(manifest.units("text")) == []


def test_arrays_of_texts_have_no_views() -> None:
    manifest = make_manifest(4, (0, 5))
    assert manifest.array_layout("image", 8).shape == (5, 1, 8)
    assert manifest.array_layout("text", 8).shape == (0, 8)
