"""Rows and units: the arithmetic that every reader repeats."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from siglip2_cache import open_cache
from siglip2_cache.store.format.catalog import Part, Table
from siglip2_cache.store.format.manifest import Generation, Manifest, Span
from siglip2_cache.store.format.views import ViewPolicy


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


def test_only_the_parts_that_hold_some_rows_are_looked_at() -> None:
    """Two generations of 5 and 2 images, units of 4, parts of 3 lines; 2 views; 1 file an image."""
    tables: tuple[Table, ...] = ("files", "samples", "views", "texts", "captions")

    def parts(generation: int, count: int) -> tuple[Part, ...]:
        lines = {table: count * (2 if table == "views" else 1) for table in tables}
        return tuple(
            Part(f"{table}-{generation}-{first}", table, min(3, num_lines - first), {})
            for table, num_lines in lines.items()
            for first in range(0, num_lines, 3)
        )

    bare = make_manifest(4, (0, 5), (8, 2))
    generations = [
        replace(generation, text_rows=generation.rows, parts=parts(generation.number, count))
        for generation, count in zip(bare.generations, (5, 2), strict=True)
    ]
    manifest = replace(bare, generations=tuple(generations), views=ViewPolicy(num_views=2))

    def found(table: Table, first: int, count: int = 1) -> list[str]:
        among = Span(first=first, count=count)
        return [part.path.partition("-")[2] for part in manifest.parts(table, among)]

    for table in ("samples", "texts"):
        assert [found(table, row) for row in (0, 2, 3, 4)] == [["0-0"], ["0-0"], ["0-3"], ["0-3"]]
        assert [found(table, row) for row in (5, 7, 8, 9, 10)] == [[], [], ["1-0"], ["1-0"], []]
        assert found(table, 2, 7) == ["0-0", "0-3", "1-0"]
    # Rows of views by line: 0 0 1, 1 2 2, 3 3 4, 4; then 8 8 9, 9.
    assert [found("views", row) for row in range(5)] == [
        *(["0-0"], ["0-0", "0-3"], ["0-3"], ["0-6"], ["0-6", "0-9"])
    ]
    assert [found("views", row) for row in (5, 8, 9)] == [[], ["1-0"], ["1-0", "1-3"]]
    assert [found("files", file) for file in (2, 4, 5, 6, 7)] == [
        *(["0-0"], ["0-3"], ["1-0"], ["1-0"], [])
    ]
    assert found("captions", 9) == ["0-0", "0-3", "1-0"]  # who knows


def test_what_parts_hold_is_reckoned_once_however_many_units_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reckoned: list[Table] = []
    real = Manifest._spans

    def spans(self: Manifest, table: Table) -> Iterator[tuple[Part, Span]]:
        reckoned.append(table)
        return real(self, table)

    monkeypatch.setattr(Manifest, "_spans", spans)
    manifest = open_cache(Path(__file__).parents[3] / "data" / "cache-v1").manifest
    for _ in range(50):
        for unit in manifest.units("image"):
            assert manifest.parts("samples", unit.rows)
    assert reckoned == ["samples"]
