"""Exports: every value and word of a cache is in them, in one order, and nothing of a failed one stays."""

import errno
import hashlib
import io
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from kit.fakes import draw_image, write_folder_corpus, write_table_corpus
from kit.reports import build_cache
from PIL import Image

from siglip2_cache import open_cache
from siglip2_cache.errors import DiskFullError, SettingError
from siglip2_cache.neighbors.export import atlas as export_atlas
from siglip2_cache.neighbors.export import rows as export_rows
from siglip2_cache.neighbors.export.export import ExportConfig, Exported, export_cache
from siglip2_cache.neighbors.export.files import NpyFile
from siglip2_cache.progress import TaskProgress, log_display
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.format.manifest import Span
from siglip2_cache.store.search.index_build import build_index
from siglip2_cache.store.search.index_query import resolve_index
from siglip2_cache.store.targets import blocks as scan

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

IMAGE_ROWS = [*range(8), *range(10, 15), 18, 19, 21]  # 8, 9, 20 were rejected, 15 to 17 are a gap
TEXT_ROWS = [0, 1, 2, *range(4, 10), 12, 13, 14]


def run(root: Path, out: Path, **settings: Any) -> Exported:
    return export_cache(
        open_cache(root), ExportConfig(out=out, **settings), progress=TaskProgress(log_display())
    )


@pytest.fixture(params=[None, 3], ids=["one block", "blocks of 3 rows"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(scan, "BLOCK_BYTES", 4 * 8 * request.param)


@pytest.mark.usefixtures("_blocks")
class TestParquet:
    def test_images_have_their_values_places_and_captions(
        self, foreign: "ForeignCache", tmp_path: Path
    ) -> None:
        run(foreign.root, tmp_path / "out", view=1)
        frame = pl.read_parquet(tmp_path / "out/images.parquet")
        assert frame["row"].to_list() == IMAGE_ROWS
        assert frame["key"].to_list() == [foreign.keys[row] for row in IMAGE_ROWS]
        np.testing.assert_array_equal(
            frame["embedding"].to_numpy(), foreign.targets["tiny", "image"][IMAGE_ROWS, 1]
        )
        assert frame["embedding"].dtype == pl.Array(pl.Float32, 8)
        lines = {line["row"]: line for line in frame.drop("embedding").to_dicts()}
        assert lines[7]["captions"] == [
            {"text": "warm", "lang": "de"},
            {"text": "warm", "lang": "nl"},
        ]
        assert lines[0]["captions"] == [
            {"text": "a cat", "lang": "en"},
            {"text": "ein Hund", "lang": "de"},
        ]
        assert lines[2]["captions"] == []
        assert lines[21]["captions"][1] == {"text": "vierzehn", "lang": "de"}
        assert lines[19] | {"captions": None} == {
            "row": 19,
            "key": "drawings/0019",
            "label": "cat",
            "source": "drawings",
            "path": "0019.jpg",
            "member": None,
            "width": 640,
            "height": 480,
            "sha256": hashlib.sha256(b"image 19").hexdigest(),
            "captions": None,
        }

    def test_texts_have_their_values_and_words(
        self, foreign: "ForeignCache", tmp_path: Path
    ) -> None:
        exported = run(foreign.root, tmp_path / "out", among="texts")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["texts.parquet"]
        frame = pl.read_parquet(tmp_path / "out/texts.parquet")
        assert frame["text_row"].to_list() == TEXT_ROWS
        assert frame["text"].to_list()[-3:] == ["twelve", "thirteen", "vierzehn"]
        np.testing.assert_array_equal(
            frame["embedding"].to_numpy(), foreign.targets["tiny", "text"][TEXT_ROWS]
        )
        assert exported.found["parts"][0]["rows"] == len(TEXT_ROWS)

    def test_what_is_left_out_is_counted(self, foreign: "ForeignCache", tmp_path: Path) -> None:
        root = shutil.copytree(foreign.root, tmp_path / "cache")
        (root / "teachers/tiny/commits/image-00003.json").unlink()
        exported = run(root, tmp_path / "out")
        images = exported.found["parts"][0]
        assert (images["rows"], images["rejected"], images["not_embedded"]) == (13, 2, 4)
        assert exported.lines[1].endswith("left out: 2 rejected, 4 not embedded yet")

    def test_pandas_reads_it(self, foreign: "ForeignCache", tmp_path: Path) -> None:
        pandas = pytest.importorskip("pandas")
        run(foreign.root, tmp_path / "out")
        frame = pandas.read_parquet(tmp_path / "out/images.parquet")
        np.testing.assert_array_equal(
            np.stack(frame["embedding"]), foreign.targets["tiny", "image"][IMAGE_ROWS, 0]
        )


def test_a_table_says_what_it_is_of(foreign: "ForeignCache", tmp_path: Path) -> None:
    run(foreign.root, tmp_path / "out", view=1)
    metadata = pq.read_schema(tmp_path / "out/images.parquet").metadata
    about = json.loads(metadata[b"siglip2_cache"])
    assert (about["teacher"], about["view"], about["logit_scale"]) == ("tiny", 1, 4.75)


def test_float16_values_take_no_more_room_than_float16(tmp_path: Path) -> None:
    import pyarrow as pa

    from siglip2_cache.neighbors.export.files import ParquetFile

    values = np.random.default_rng(0).normal(0, 0.03, (2000, 64)).astype(np.float16)
    schema = pa.schema([pa.field("row", pa.int64(), nullable=False)])
    file = ParquetFile(tmp_path / "x.parquet", schema, 64, column="embedding", about={})
    file.write(pa.table({"row": np.arange(2000)}, schema=schema), values)
    file.close()
    assert (tmp_path / "x.parquet").stat().st_size < 1.15 * values.nbytes


@pytest.mark.usefixtures("_blocks")
def test_npy_is_mapped_and_its_lines_are_in_the_same_order(
    foreign: "ForeignCache", tmp_path: Path
) -> None:
    run(foreign.root, tmp_path / "out", format="npy")
    values = np.load(tmp_path / "out/images.npy", mmap_mode="r")
    lines = pl.read_parquet(tmp_path / "out/images.parquet")
    assert isinstance(values, np.memmap)
    assert values.dtype == np.float16
    assert "embedding" not in lines.columns
    np.testing.assert_array_equal(
        values, foreign.targets["tiny", "image"][lines["row"].to_numpy(), 0]
    )
    texts = np.load(tmp_path / "out/texts.npy")
    np.testing.assert_array_equal(texts, foreign.targets["tiny", "text"][TEXT_ROWS])


class TestAtlas:
    @pytest.mark.usefixtures("_blocks")
    def test_neighbours_are_line_numbers_nearest_first_with_one_less_the_cosine(
        self, foreign: "ForeignCache", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(export_atlas, "NUM_NEIGHBORS", 4)
        run(foreign.root, tmp_path / "out", format="atlas")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["images.parquet"]
        frame = pl.read_parquet(tmp_path / "out/images.parquet")
        x = foreign.targets["tiny", "image"][IMAGE_ROWS, 0].astype(np.float64)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        np.testing.assert_allclose(frame["vector"].to_numpy(), x, atol=1e-3)
        for line, near in enumerate(frame["neighbors"]):
            distance = 1 - x @ x[line]
            distance[line] = np.inf
            expected = np.argsort(distance)[:4]
            assert near["ids"] == expected.tolist()
            np.testing.assert_allclose(near["distances"], distance[expected], atol=1e-12)

    def test_captions_are_one_text_and_the_command_that_shows_it_is_said(
        self, foreign: "ForeignCache", tmp_path: Path
    ) -> None:
        exported = run(foreign.root, tmp_path / "my out", format="atlas")
        frame = pl.read_parquet(tmp_path / "my out/images.parquet")
        assert frame["text"].to_list()[:3] == ["a cat\nein Hund", "ein Hund", ""]
        [command] = [line for line in exported.lines if line.startswith("show")]
        assert shlex.split(command)[1:] == [
            "embedding-atlas",
            str(tmp_path / "my out/images.parquet"),
            *("--vector", "vector", "--neighbors", "neighbors", "--text", "text"),
        ]

    def test_an_index_that_fits_is_used_and_a_stale_one_is_not(
        self, foreign: "ForeignCache", tmp_path: Path
    ) -> None:
        root = shutil.copytree(foreign.root, tmp_path / "cache")
        exact = run(root, tmp_path / "exact", format="atlas", among="texts")
        cache = open_cache(root)
        build_index(cache, resolve_index(cache, "text"), progress=TaskProgress(log_display()))
        indexed = run(root, tmp_path / "indexed", format="atlas", among="texts")
        (root / "teachers/tiny/commits/text-00002.json").unlink()
        stale = run(root, tmp_path / "stale", format="atlas", among="texts")
        how = [each.found["parts"][0]["neighbors"] for each in (exact, indexed, stale)]
        assert how == ["exact", "flat index, recall@10 1.000", "exact"]
        frames = [
            pl.read_parquet(tmp_path / name / "texts.parquet") for name in ("exact", "indexed")
        ]
        assert frames[0].equals(frames[1])

    def test_comparing_many_rows_with_each_other_is_warned_of(
        self,
        foreign: "ForeignCache",
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(export_atlas, "MANY_ROWS", 10)
        run(foreign.root, tmp_path / "out", format="atlas")
        assert (
            f"build an index first: siglip2-cache index {foreign.root}" in capsys.readouterr().err
        )


class TestThumbnails:
    @pytest.fixture
    def drawn(self, tiny_checkpoint: Path, tmp_path: Path) -> Path:
        """A cache of 5 drawn pictures, one of which is gone since."""
        corpus = write_folder_corpus(tmp_path / "corpus", 5)
        build_cache(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
        (corpus / "img003.png").unlink()
        return tmp_path / "cache"

    def test_each_line_has_its_picture_or_none(self, drawn: Path, tmp_path: Path) -> None:
        exported = run(drawn, tmp_path / "out", format="atlas", thumbnails=True)
        frame = pl.read_parquet(tmp_path / "out/images.parquet")
        assert frame["image"].is_null().to_list() == [False, False, False, True, False]
        with Image.open(io.BytesIO(frame["image"][4]["bytes"])) as picture:
            difference = np.abs(np.asarray(picture.convert("RGB")).astype(int) - draw_image(4))
        assert picture.size == (24, 16)
        assert difference.mean() < 20  # lossy, and not another picture
        assert "thumbnails 1 are missing: file not found or unreadable" in exported.lines
        assert exported.lines[-1].endswith(" --text text --image image")

    def test_they_go_with_atlas_alone(self, tmp_path: Path) -> None:
        for settings in ({"format": "npy"}, {"format": "atlas", "among": "texts"}):
            with pytest.raises(SettingError, match="thumbnails go with images for atlas"):
                ExportConfig(out=tmp_path, thumbnails=True, **settings)


@pytest.fixture
def sharing(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A cache of 24 images, each with a caption of its own; the first caption is also that of all others."""
    lines = [
        {"image": f"{i:02d}.png", "caption": caption}
        for i in range(24)
        for caption in ("a picture", f"picture {i}")
    ]
    table = write_table_corpus(tmp_path / "corpus", lines)
    build_cache(table, tmp_path / "cache", tiny_checkpoint)
    return tmp_path / "cache"


@pytest.mark.parametrize("format", ["parquet", "clip-retrieval"])
def test_a_block_reads_the_texts_of_its_own_images_though_all_share_an_early_one(
    sharing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    collected: list[int] = []
    real = pl.LazyFrame.collect

    def collect(self: pl.LazyFrame, *args: Any, **options: Any) -> Any:
        frame = real(self, *args, **options)
        if frame.columns == ["text_row", "text"]:
            collected.append(frame.height)
        return frame

    monkeypatch.setattr(scan, "BLOCK_BYTES", 4 * 64 * 3)  # 3 images
    monkeypatch.setattr(pl.LazyFrame, "collect", collect)
    run(sharing, tmp_path / "out", format=format, among="images" if format == "parquet" else "both")
    assert len(collected) >= 8
    assert max(collected) == 4


def test_a_look_up_reads_the_ranges_in_which_its_rows_are_dense(
    sharing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, spans = open_cache(sharing), list[Span | None]()
    real = Cache.table

    def table(self: Cache, table: Any, among: Span | None = None) -> pl.LazyFrame:
        spans.append(among)
        return real(self, table, among)

    monkeypatch.setattr(Cache, "table", table)
    monkeypatch.setattr(export_rows, "_FAR", 4)
    wanted = np.array([20, 0, 21, 24, 0, 1])
    found = export_rows.find_lines(cache, "texts", "text_row", wanted)
    assert spans == [Span(first=0, count=2), Span(first=20, count=5)]
    assert found["text_row"].to_list() == [0, 1, 20, 21, 24]
    expected = real(cache, "texts").filter(pl.col("text_row").is_in([0, 1, 20, 21, 24])).collect()
    assert found.equals(expected)
    assert export_rows.find_lines(cache, "texts", "text_row", wanted[:0]).height == 0


class TestRefusals:
    def test_a_folder_that_is_there_is_left_as_it_is(
        self, foreign: "ForeignCache", tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        with pytest.raises(SettingError, match=r"out exists; name a new folder"):
            run(foreign.root, tmp_path / "out")
        assert list(tmp_path.iterdir()) == [tmp_path / "out"]

    def test_a_folder_within_the_cache_or_nowhere_is_refused(
        self, foreign: "ForeignCache", tmp_path: Path
    ) -> None:
        with pytest.raises(SettingError, match=r"out is in the cache; name a folder outside"):
            run(foreign.root, foreign.root / "out")
        with pytest.raises(SettingError, match=r"cannot be made: there is no folder .*nowhere"):
            run(foreign.root, tmp_path / "nowhere/out")

    def test_other_words_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(
            SettingError,
            match=r"format must be one of parquet, npy, atlas, clip-retrieval, got 'x'",
        ):
            ExportConfig(out=tmp_path, format="x")
        with pytest.raises(
            SettingError, match=r"among must be one of images, texts, both, got 'x'"
        ):
            ExportConfig(out=tmp_path, among="x")

    def test_a_view_of_texts_is_refused(self, foreign: "ForeignCache", tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="view 1 needs images; texts have no views"):
            run(foreign.root, tmp_path / "out", among="texts", view=1)
        with pytest.raises(SettingError, match=r"view 2 is not in .* views 0\.\.1 of each image"):
            run(foreign.root, tmp_path / "out", view=2)

    @pytest.mark.parametrize(
        ("cause", "raised"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), DiskFullError),
            (KeyboardInterrupt(), KeyboardInterrupt),
        ],
    )
    def test_nothing_of_a_failed_export_stays(
        self,
        foreign: "ForeignCache",
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        cause: BaseException,
        raised: type[BaseException],
    ) -> None:
        def fail(*_: Any) -> None:
            raise cause

        monkeypatch.setattr(NpyFile, "write", fail)
        with pytest.raises(raised):
            run(foreign.root, tmp_path / "out", format="npy")
        assert list(tmp_path.iterdir()) == []

    def test_a_cache_without_such_targets_gives_an_empty_table(
        self, foreign: "ForeignCache", tmp_path: Path
    ) -> None:
        root = shutil.copytree(foreign.root, tmp_path / "cache")
        for record in (root / "teachers/tiny/commits").glob("text-*.json"):
            record.unlink()
        for format in ("parquet", "atlas"):
            exported = run(root, tmp_path / format, among="texts", format=format)
            frame = pl.read_parquet(tmp_path / format / "texts.parquet")
            assert (frame.height, exported.found["parts"][0]["not_embedded"]) == (0, 13)
        run(root, tmp_path / "npy", among="texts", format="npy")
        assert np.load(tmp_path / "npy/texts.npy").shape == (0, 8)


def test_fsync_comes_before_the_final_name(
    foreign: "ForeignCache", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append((tmp_path / "out").exists()), fsync(fd))
    )
    run(foreign.root, tmp_path / "out")
    assert synced == [False, False, False, True]  # two files and their folder, then its name
