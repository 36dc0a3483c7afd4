"""Names joined to the rows of a cache: as keys, as paths, as texts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
from kit.fakes import FakeTeacher, SilentProgress, config_of, write_folder_corpus

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError, SourceError
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.importing.embeddings import Embeddings
from siglip2_cache.precompute.importing.match import Matches, refuse_unmatched
from siglip2_cache.precompute.importing.rows import unit_rows
from siglip2_cache.precompute.planning.spill import Scratch
from siglip2_cache.store.cache import Cache


class Named(Embeddings):
    """Names without files."""

    kind: ClassVar[str] = "named"
    place: ClassVar = {"item": pl.Int64()}

    def __init__(self, images: list[tuple[str, int]], texts: list[str] | None = None) -> None:
        super().__init__(Path("/source"), 2)
        self._images, self._texts = images, texts or []

    def images(self) -> Iterator[pl.DataFrame]:
        yield self._frame(self._images)

    def texts(self) -> Iterator[pl.DataFrame]:
        yield self._frame([(text, 0) for text in self._texts])

    def _frame(self, lines: list[tuple[str, int]]) -> pl.DataFrame:
        rows = [(name, view, i) for i, (name, view) in enumerate(lines)]
        schema = {"name": pl.String, "view": pl.Int64, "item": pl.Int64}
        return pl.DataFrame(rows, schema, orient="row")

    def vectors(self, modality: Any, places: pl.DataFrame) -> Any:
        raise NotImplementedError

    def digest(self) -> str:
        return ""


@pytest.fixture(scope="module")
def cache(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """12 images a/img000 ... of a source named ``set``, in two views."""
    root = tmp_path_factory.mktemp("match")
    write_folder_corpus(root / "corpus" / "a", 12)
    config = config_of(f"set={root / 'corpus'}", root / "cache", tiny_checkpoint, num_views=2)
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    return open_cache(root / "cache")


def found(cache: Cache, source: Named, rows: list[int], **settings: Any) -> list[Any]:
    matches = Matches(source, cache, Scratch(**settings))
    return matches.find("image", rows).select("row", "view", "item").rows()


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("set/a/{}", id="keys"),
        pytest.param("a/{}", id="keys without the source"),
        pytest.param("/data/b/a/{}.png", id="paths"),
        pytest.param("s3://bucket/a/{}.png", id="URLs"),
    ],
)
@pytest.mark.parametrize("bucket_rows", [3, 2_000_000])
def test_a_name_is_a_key_or_the_path_of_an_image(cache: Cache, form: str, bucket_rows: int) -> None:
    names = [form.format(f"img{i:03d}") for i in (7, 2, 11)]
    source = Named([(name, view) for name in names for view in (1, 0)])
    assert found(cache, source, [2, 3, 7], bucket_rows=bucket_rows) == [
        (2, 0, 3),
        (2, 1, 2),
        (7, 0, 1),
        (7, 1, 0),
    ]


def test_a_name_is_the_path_of_an_image_whose_key_is_another(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    write_folder_corpus(tmp_path / "images", 3)
    lines = [{"key": f"k{i}", "image": f"images/img{i:03d}.png"} for i in range(3)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = config_of(tmp_path / "list.jsonl", tmp_path / "cache", tiny_checkpoint)
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    cache = open_cache(tmp_path / "cache")
    source = Named([(f"/then/images/img{i:03d}.png", 0) for i in (2, 9, 0)])
    matches = Matches(source, cache, Scratch())
    assert matches.find("image", [0, 1, 2]).select("row", "item").rows() == [(0, 2), (2, 0)]
    assert matches.counts["image"].lines("image") == [
        "images     2 embeddings joined by path",
        "           1 path that the cache does not have: '/then/images/img009.png'",
    ]


def test_unknown_and_repeated_names_are_counted_and_the_first_taken(cache: Cache) -> None:
    names = ["set/a/img001", "x", "set/a/img001", "y", "z", "w"]
    matches = Matches(Named([(name, 0) for name in names]), cache, Scratch())
    assert matches.find("image", [1])["item"].to_list() == [0]
    assert matches.counts["image"].lines("image") == [
        "images     1 embedding joined by key",
        "           4 keys that the cache does not have: 'x', 'y', 'z', ...",
        "           1 key given twice, the first embedding is taken: 'set/a/img001'",
    ]


def test_texts_are_compared_without_white_space_at_their_ends(cache: Cache) -> None:
    matches = Matches(Named([], [" Picture 3\n", "Picture 3", "picture 3"]), cache, Scratch())
    assert matches.find("text", np.arange(4)).select("row", "item").rows() == [(1, 0)]
    assert matches.counts["text"].num_unknown == 1
    assert len(matches.counts["text"].lines("text")) == 2  # a text given twice is no fault


def test_a_view_that_the_cache_does_not_have_is_refused(cache: Cache) -> None:
    with pytest.raises(
        SettingError, match=r"/source has view 2 of 'set/a/img000', and .* has views 0..1"
    ):
        Matches(Named([("set/a/img000", 2)]), cache, Scratch())


def test_a_source_without_any_known_name_is_refused(cache: Cache) -> None:
    source = Named([("nobody", 0)])
    with pytest.raises(
        SourceError, match="its first is 'nobody', the first key of the cache is 'set/a/"
    ):
        refuse_unmatched(Matches(source, cache, Scratch()), source, cache)


def test_rows_become_unit_in_float16_and_nan_where_they_have_no_direction() -> None:
    rows = np.array([[3e38, 4e37], [1e-30, 0], [0, 0], [np.inf, 1], [np.nan, 1]], np.float32)
    found = unit_rows(rows)
    assert found.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(found[:2].astype("f4"), axis=1), 1, atol=1e-3)
    assert np.isnan(found[2:]).any(axis=1).all()
