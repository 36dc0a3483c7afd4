"""Thumbnails: the pixels that the teacher saw, made once, or the reason why there are none."""

import io
import json
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.fakes import draw_image, write_folder_corpus
from kit.memory_bucket import memory_bucket
from kit.reports import build_cache, keys_of
from numpy.typing import NDArray
from PIL import Image, ImageOps

from siglip2_cache.errors import DamagedCacheError, SettingError
from siglip2_cache.images import prefetch_parquet as parquet_images
from siglip2_cache.images.pixels import cut_view, decode_rgb
from siglip2_cache.neighbors import thumbnails
from siglip2_cache.neighbors.thumbnails import Thumbnail, make_thumbnails
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.views import ViewBox


def make(cache: Cache, *pictures: Any, side: int = 64) -> dict[Any, Thumbnail]:
    return make_thumbnails(cache, pictures, teachers=cache.teachers, side=side)


def pixels_of(thumbnail: Thumbnail) -> NDArray[np.float64]:
    image = Image.open(io.BytesIO(thumbnail.data))
    assert (image.format, image.size) == ("WEBP", (thumbnail.width, thumbnail.height))
    return np.asarray(image.convert("RGB"), np.float64)


def difference(thumbnail: Thumbnail, expected: Image.Image) -> float:
    """Mean difference of the pixels, 0 to 255."""
    small = expected.resize((thumbnail.width, thumbnail.height), Image.Resampling.LANCZOS)
    return float(np.abs(pixels_of(thumbnail) - np.asarray(small)).mean())


def large_blocks(size: tuple[int, int] = (640, 400)) -> Image.Image:
    """A photograph-sized picture, unlike its mirror image."""
    blocks = np.random.default_rng(3).integers(0, 256, (5, 8, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_view_shows_the_crop_that_the_teacher_saw_mirrored_where_it_was(
    ending: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    large_blocks().save(corpus / f"a.{ending}")
    cache = build_cache(corpus, tmp_path / "cache", tiny_checkpoint, num_views=6)
    found = make(cache, *((0, view) for view in range(6)))
    whole = decode_rgb((corpus / f"a.{ending}").read_bytes())
    boxes = cache.table("views").sort("view").select("top", "left", "height", "width", "flip")
    for view, line in enumerate(boxes.collect().iter_rows()):
        expected = cut_view(whole, ViewBox(*line))
        assert difference(found[0, view], expected) < 8, view
        assert difference(found[0, view], ImageOps.mirror(expected)) > 24, view
    assert set(boxes.collect()["flip"]) == {False, True}


@pytest.mark.parametrize("on_white", [True, False])
def test_a_transparent_colour_is_shown_as_the_teacher_saw_it(
    on_white: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint, corpus = tmp_path / "tiny", tmp_path / "corpus"
    shutil.copytree(tiny_checkpoint, checkpoint)
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text())
    changed = json.dumps({**settings, "do_convert_rgb": on_white})
    (checkpoint / "preprocessor_config.json").write_text(changed)
    corpus.mkdir()
    Image.new("RGB", (32, 32), (0, 0, 255)).save(corpus / "a.png", transparency=(0, 0, 255))
    cache = build_cache(corpus, tmp_path / "cache", checkpoint)
    shown = Image.new("RGB", (32, 32), (255, 255, 255) if on_white else (0, 0, 255))
    assert difference(make(cache, (0, 0))[0, 0], shown) < 3


def test_an_image_is_decoded_once_for_all_its_views_and_showings(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 9)
    cache = build_cache(corpus, tmp_path / "cache", tiny_checkpoint, num_views=2, shard_rows=4)
    decoded: list[int] = []
    real = thumbnails.decode_for_views

    def spy(data: bytes, boxes: Any, **more: Any) -> Any:
        decoded.append(len(boxes))
        return real(data, boxes, **more)

    monkeypatch.setattr(thumbnails, "decode_for_views", spy)
    wanted = [(8, 0), (1, 1), (1, 0), (8, 0), (5, 0), (1, 1)]
    found = make(cache, *wanted)
    assert found.keys() == set(wanted)
    assert all(thumbnail.data for thumbnail in found.values())
    assert sorted(decoded) == [1, 1, 2]


def test_rows_far_apart_get_their_own_pictures(tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 11)
    cache = build_cache(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    found = make(cache, (10, 0), (0, 0), (5, 0))
    for (row, _), thumbnail in found.items():
        errors = [difference(thumbnail, draw_image(i)) for i in range(11)]
        assert int(np.argmin(errors)) == row


@pytest.fixture(scope="module")
def troubled(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Cache, dict[str, int]]:
    """A cache whose corpus was not left in peace."""
    root = tmp_path_factory.mktemp("troubled")
    corpus = write_folder_corpus(root / "corpus", 6)
    (corpus / "img001.png").write_bytes(b"")
    cache = build_cache(corpus, root / "cache", tiny_checkpoint, shard_rows=4)
    draw_image(1).save(corpus / "img001.png")  # sound now, yet the teacher never saw it
    (corpus / "img002.png").unlink()
    draw_image(99).save(corpus / "img003.png")
    (corpus / "img004.png").write_bytes(b"<!doctype html>")
    return cache, keys_of(cache)


@pytest.mark.parametrize(
    ("key", "state", "reason", "is_shown"),
    [
        ("img000", "sound", "", True),
        ("img001", "rejected", "rejected by tiny: empty: 0 bytes", False),
        ("img002", "unreadable", "no such file", False),
        ("img003", "changed", "the file changed since tiny saw it", True),
        (
            *("img004", "changed"),
            "the file changed since tiny saw it and is unreadable now: not an image: it is a web page",
            False,
        ),
        ("img005", "sound", "", True),
    ],
)
def test_a_picture_that_is_not_what_the_teacher_saw_says_so(
    key: str, state: str, reason: str, is_shown: bool, troubled: tuple[Cache, dict[str, int]]
) -> None:
    cache, rows = troubled
    picture = (rows[key], 0)
    found = make(cache, picture)[picture]
    assert (found.state, found.reason, bool(found.data)) == (state, reason, is_shown)


def test_a_changed_picture_is_shown_as_it_is_now(troubled: tuple[Cache, dict[str, int]]) -> None:
    cache, rows = troubled
    found = make(cache, (rows["img003"], 0))[rows["img003"], 0]
    assert difference(found, draw_image(99)) < difference(found, draw_image(3))


def test_a_row_that_is_in_no_catalog_says_so(troubled: tuple[Cache, dict[str, int]]) -> None:
    found = make(troubled[0], (4711, 0))[4711, 0]
    assert (found.state, found.reason) == ("unreadable", "row 4711 is not in the catalog")


def test_a_view_that_the_cache_does_not_have_is_refused(
    troubled: tuple[Cache, dict[str, int]],
) -> None:
    with pytest.raises(SettingError, match=r"view 1 of row 2 is not in .*has views 0\.\.0"):
        make(troubled[0], (2, 1))


def test_a_damaged_record_of_what_the_teacher_saw_is_named(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    cache = build_cache(corpus, tmp_path / "cache", tiny_checkpoint)
    cache.files.fetch(layout.images_part("tiny", 0), {}).write_bytes(b"no Parquet")
    with pytest.raises(
        DamagedCacheError,
        match=r"images/00000\.parquet is missing or damaged; run siglip2-cache verify",
    ):
        make(cache, (0, 0))


def test_pictures_inside_parquet_files_are_read_in_one_pass_a_row_group(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, first in (("a", 0), ("b", 8)):
        cells = [{"bytes": _png(i), "path": f"{i}.png"} for i in range(first, first + 8)]
        keys = [f"k{i:02d}" for i in range(first, first + 8)]
        texts = [f"picture {i}" for i in range(first, first + 8)]
        table = pa.table({"image": cells, "key": keys, "caption": texts})
        pq.write_table(table, corpus / f"{name}.parquet", row_group_size=4)
    cache = build_cache(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=8)
    starts: list[tuple[str, int]] = []
    real = parquet_images.leaf_batches

    def spy(file: Any, member: str, row_group: int, **more: Any) -> Iterator[Any]:
        starts.append((member, row_group))
        return real(file, member, row_group, **more)

    monkeypatch.setattr(parquet_images, "leaf_batches", spy)
    wanted = [9, 2, 14, 0, 3, 1, 7]
    found = make(cache, *((row, 0) for row in wanted))
    for row in wanted:
        assert found[row, 0].state == "sound"
        errors = [difference(found[row, 0], draw_image(i)) for i in range(16)]
        assert int(np.argmin(errors)) == row
    assert starts == [("image.bytes", group) for group in (0, 1, 0, 1)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param((1, 4000), (1, 64), id="a line"),
        pytest.param((4000, 1), (64, 1), id="a lying line"),
        pytest.param((6000, 4000), (64, 43), id="huge"),
        pytest.param((24, 16), (24, 16), id="small: never enlarged"),
    ],
)
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_picture_keeps_its_aspect_whatever_its_size(
    size: tuple[int, int],
    expected: tuple[int, int],
    ending: str,
    troubled: tuple[Cache, dict[str, int]],
    tmp_path: Path,
) -> None:
    file = tmp_path / f"mine.{ending}"
    Image.new("RGB", size, (200, 40, 40)).save(file)
    found = make(troubled[0], file)[file]
    assert (found.width, found.height) == expected
    assert np.abs(pixels_of(found) - (200, 40, 40)).max() < 8


def test_a_line_is_as_wide_as_can_be_seen_in_a_large_thumbnail(
    troubled: tuple[Cache, dict[str, int]], tmp_path: Path
) -> None:
    file = tmp_path / "line.png"
    Image.new("RGB", (1, 4000)).save(file)
    found = make(troubled[0], file, side=320)[file]
    assert (found.width, found.height) == (5, 320)


def test_a_file_of_the_user_is_turned_upright(
    troubled: tuple[Cache, dict[str, int]], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    file = tmp_path / "turned.jpg"
    large_blocks((400, 200)).save(file, exif=exif)
    found = make(troubled[0], file, tmp_path / "none.jpg")
    assert (found[file].width, found[file].height) == (32, 64)
    assert (
        difference(found[file], large_blocks((400, 200)).transpose(Image.Transpose.ROTATE_270)) < 6
    )
    gone = found[tmp_path / "none.jpg"]
    assert (gone.state, gone.reason, gone.data) == ("unreadable", "no such file", b"")


def test_threads_leave_the_filters_of_warnings_as_they_were(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siglip2_cache.neighbors.thumbnails.num_cores", lambda: 8)
    corpus = write_folder_corpus(tmp_path / "corpus", 40)
    cache = build_cache(corpus, tmp_path / "cache", tiny_checkpoint)
    before = list(warnings.filters)
    make(cache, *((row, 0) for row in range(40)))
    assert warnings.filters == before


def test_rows_of_units_that_are_not_embedded_are_shown_unchecked(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 6)
    cache = build_cache(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    cache.files.fetch(layout.unit_record("tiny", "image", 1), {}).unlink()
    again = Cache(cache.root, corpus_roots={})
    assert again.samples().select(pl.len()).collect().item() == 6
    found = make(again, (1, 0), (5, 0))
    assert [found[row, 0].state for row in (1, 5)] == ["sound", "sound"]
    assert found[5, 0].data


def _png(seed: int) -> bytes:
    sink = io.BytesIO()
    draw_image(seed).save(sink, "PNG")
    return sink.getvalue()


def test_pictures_in_an_object_store_are_fetched_and_shown(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 5)
    built = build_cache(corpus, tmp_path / "cache", tiny_checkpoint)
    wanted = [(row, 0) for row in range(5)]
    local = make_thumbnails(built, wanted, teachers=["tiny"], side=16)
    with memory_bucket() as bucket:
        url = bucket.put_folder(corpus, "c")
        bucket.remove("c/img003.png")
        moved = Cache(built.root, corpus_roots={str(corpus): url})
        remote = make_thumbnails(moved, wanted, teachers=["tiny"], side=16)
    assert remote[3, 0].reason == "no such file"
    assert {p: remote[p] for p in wanted if p != (3, 0)} == {
        p: local[p] for p in wanted if p != (3, 0)
    }


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ConnectionResetError("reset"), "is unreachable: reset"),
        (type("NoCredentialsError", (Exception,), {})("none"), "no credentials for "),
    ],
    ids=["away", "without credentials"],
)
def test_pictures_of_a_store_that_cannot_be_used_are_taken_from_the_kept_pixels(
    answer: Exception,
    reason: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("siglip2_cache.store.io.requests._WAITS_S", (0.0,))
    corpus = write_folder_corpus(tmp_path / "corpus", 5)
    plain = build_cache(corpus, tmp_path / "plain", tiny_checkpoint)
    kept = build_cache(corpus, tmp_path / "kept", tiny_checkpoint, keep_pixels=32)
    mine = tmp_path / "mine.png"
    draw_image(7).save(mine)

    def refuse(method: str, path: str) -> None:
        if not path.endswith("img000.png"):
            raise answer

    with memory_bucket() as bucket:
        roots = {str(corpus): bucket.put_folder(corpus, "c")}
        bucket.before = refuse
        without, found = (
            make(Cache(cache.root, corpus_roots=roots), *((row, 0) for row in range(5)), mine)
            for cache in (plain, kept)
        )
    assert all(thumbnail.state == "sound" and thumbnail.data for thumbnail in found.values())
    read = {picture for picture, thumbnail in without.items() if thumbnail.data}
    assert read == {(0, 0), mine}
    assert all(reason in without[row, 0].reason for row in range(1, 5))


def test_a_picture_that_takes_for_ever_is_shown_as_unreadable(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 1)
    cache = build_cache(corpus, tmp_path / "cache", tiny_checkpoint)
    is_over = threading.Event()
    monkeypatch.setattr(thumbnails, "read_image_bytes", lambda _: is_over.wait())
    monkeypatch.setattr(thumbnails, "_TIMEOUT_S", 0.01)
    made = make(cache, (0, 0))[0, 0]
    is_over.set()
    assert (made.state, made.reason) == ("unreadable", "took longer than 0.01 s to read")
