"""What a build puts into a cache, row by row; the teacher is a fake one that needs no model."""

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from kit import processes
from kit.fakes import (
    EMBED_DIM,
    SIZE,
    FakeTeacher,
    SilentProgress,
    config_of,
    draw_image,
    tree_of,
    write_folder_corpus,
    write_table_corpus,
)
from numpy.typing import NDArray
from PIL import Image, ImageOps

from siglip2_cache import open_cache
from siglip2_cache.errors import BuildError, SettingError
from siglip2_cache.precompute.build import BuildSummary, build
from siglip2_cache.precompute.dry_run import dry_run
from siglip2_cache.precompute.summary import summary_lines
from siglip2_cache.precompute.teacher.identity import TeacherChoices, identity_differences
from siglip2_cache.precompute.teacher.reload import LiveTeacher
from siglip2_cache.precompute.teacher.teacher import OutOfMemory
from siglip2_cache.precompute.verify_live import verify_live
from siglip2_cache.siglip import Checkpoint, resolve_checkpoint
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.catalog import read_table
from siglip2_cache.store.verify.verify import verify_cache

KIT = Path(__file__).parents[1] / "kit"


@dataclass
class Teacher(FakeTeacher):
    """The fake teacher, which also keeps the pixels it saw and may have less memory."""

    pixels_seen: list[NDArray[np.uint8]] = field(default_factory=list)
    fits: int = 1000
    """Largest batch that fits."""

    device_name: str = "a card"

    def embed_images(self, pixels_BHWC: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        wait = super().embed_images(pixels_BHWC)
        self._refuse_above(len(pixels_BHWC))
        self.pixels_seen.append(pixels_BHWC.copy())
        return wait

    def embed_texts(self, texts: Sequence[str]) -> Callable[[], NDArray[np.float32]]:
        wait = super().embed_texts(texts)
        self._refuse_above(len(texts))
        return wait

    def provenance(self) -> dict[str, Any]:
        return {"teacher": "fake", "device_name": self.device_name}

    def _refuse_above(self, size: int) -> None:
        if size > self.fits:
            raise OutOfMemory(f"a batch of {size} does not fit")


@dataclass(frozen=True)
class Run:
    """One run of a build, and what it left."""

    summary: BuildSummary
    teacher: Teacher
    progress: SilentProgress
    cache: Cache
    images: NDArray[np.float16]
    """(samples, views, embed_dim) as this run left them, NaN where rejected."""

    texts: NDArray[np.float16]
    """(texts, embed_dim)."""


def run(
    corpus: Path,
    cache: Path,
    checkpoint: Path,
    teacher: Teacher | None = None,
    progress: SilentProgress | None = None,
    **settings: Any,
) -> Run:
    teacher, progress = teacher or Teacher(), progress or SilentProgress()
    config = config_of(corpus, cache, checkpoint, **settings)
    summary = build(config, progress=progress, make_teacher=lambda *_: teacher)
    opened = open_cache(cache)
    values = [values_of(opened, modality, summary.teacher) for modality in ("image", "text")]
    return Run(summary, teacher, progress, opened, *values)


def no_teacher(*_: object) -> Teacher:
    raise AssertionError("the teacher was loaded")


def values_of(cache: Cache, modality: str, teacher: str) -> NDArray[np.float16]:
    targets = cache.image_targets if modality == "image" else cache.text_targets
    units = cache.manifest.units("image" if modality == "image" else "text")
    # A copy, not the map of files that a later run may replace.
    parts = [np.array(targets(teacher).read_unit(unit.number)) for unit in units]
    return np.concatenate(parts) if parts else np.empty((0, EMBED_DIM), np.float16)


def reasons_of(cache: Cache) -> dict[str, str]:
    return dict(cache.rejected().select("key", "reason").collect().iter_rows())


def embed(pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    return FakeTeacher().embed_images(pixels_BHWC)()


def embed_file(path: Path) -> NDArray[np.float32]:
    """The embedding of a whole picture, pixels prepared by Pillow alone."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR)
    return embed(np.asarray(small)[None])[0]


# -- every row has its own embedding


def test_every_caption_is_encoded_once_and_never_twice(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 10, captions=3)
    result = run(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    seen = [text for text in result.teacher.texts_seen if text]  # "" fills up a batch
    texts = result.cache.texts().collect()["text"].to_list()
    written = {line for path in corpus.glob("*.txt") for line in path.read_text().split("\n")}
    assert seen == texts
    assert len(set(seen)) == len(seen) == 24
    assert set(seen) == written
    assert result.cache.captions().collect().height == 30
    expected = FakeTeacher().embed_texts(texts)()
    np.testing.assert_array_equal(result.texts, expected.astype(np.float16))


def test_every_image_goes_through_the_teacher_once_and_fills_its_own_row(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 10)
    result = run(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    seen = [p.tobytes() for batch in result.teacher.pixels_seen for p in batch if p.any()]
    assert len(seen) == len(set(seen)) == 10
    keys = result.cache.samples().collect()["key"].to_list()
    assert keys == [f"img{i:03d}" for i in range(10)]
    expected = np.stack([embed_file(corpus / f"{key}.png") for key in keys])
    np.testing.assert_allclose(result.images[:, 0].astype(np.float32), expected, atol=1e-3)


def test_the_target_of_a_view_is_that_of_the_crop_its_stored_box_names(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for row in range(6):  # large enough that no crop rounds to the whole
        draw_image(row, (240, 160)).save(corpus / f"{row}.png")
    result = run(corpus, tmp_path / "cache", tiny_checkpoint, num_views=5, batch_size=7)
    views = result.cache.table("views").sort("row", "view").collect()
    assert views["flip"].any()
    assert not views["flip"].all()
    for row in range(6):
        crops: list[NDArray[np.uint8]] = []
        mirrored: list[NDArray[np.uint8]] = []
        for box in views.filter(pl.col("row") == row).iter_rows(named=True):
            picture = draw_image(row, (240, 160))
            left, right = (whole(box["left"], 240), whole(box["left"] + box["width"], 240))
            top, bottom = (whole(box["top"], 160), whole(box["top"] + box["height"], 160))
            crop = picture.crop((left, top, right, bottom))
            crop = ImageOps.mirror(crop) if box["flip"] else crop
            pixels = np.asarray(crop.resize(SIZE[::-1], Image.Resampling.BILINEAR))
            crops.append(pixels)
            mirrored.append(pixels[:, ::-1])
        stored = result.images[row].astype(np.float32)  # (views, embed_dim)
        np.testing.assert_allclose(stored, embed(np.stack(crops)), atol=1e-3)
        # The measure tells crops and flips apart: else it would not see them mixed up.
        assert (stored @ embed(np.stack(crops)).T).argmax(axis=1).tolist() == [*range(5)]
        assert (np.diag(stored @ embed(np.stack(mirrored)).T) < 0.999).all()


def whole(fraction: float, num_pixels: int) -> int:
    return math.floor(fraction * num_pixels + 0.5)


def test_stored_boxes_are_used_and_not_drawn_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 4)
    settings: dict[str, Any] = {"num_views": 3, "shard_rows": 4}
    one = run(corpus, tmp_path / "one", tiny_checkpoint, view_seed=7, **settings)
    again = run(corpus, tmp_path / "one", tiny_checkpoint, teacher_name="again", **settings)
    other = run(corpus, tmp_path / "other", tiny_checkpoint, view_seed=8, **settings)
    np.testing.assert_array_equal(again.images, one.images)
    np.testing.assert_array_equal(other.images[:, 0], one.images[:, 0])
    assert (other.images[:, 1:] != one.images[:, 1:]).any(axis=-1).all()


# -- batches


@pytest.mark.parametrize(
    ("num_views", "batch_size", "image_batch"), [(1, 4, 4), (3, 7, 6), (3, 2, 2)]
)
def test_every_batch_is_padded_to_full_size(
    num_views: int, batch_size: int, image_batch: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 7)
    cache = tmp_path / "cache"
    sizes: dict[str, Any] = {"num_views": num_views, "batch_size": batch_size, "shard_rows": 5}
    result = run(corpus, cache, tiny_checkpoint, **sizes)
    assert set(result.teacher.image_batches) == {image_batch}
    assert set(result.teacher.text_batches) == {batch_size}
    assert result.summary.image_batch == image_batch
    assert result.images.shape == (7, num_views, 64)
    assert not np.isnan(result.images).any()


def test_a_rejected_row_is_a_blank_in_its_batch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 4)
    sound = run(corpus, tmp_path / "sound", tiny_checkpoint, batch_size=4)
    (corpus / "img001.png").write_bytes(b"")
    result = run(corpus, tmp_path / "cache", tiny_checkpoint, batch_size=4)
    [batch] = result.teacher.pixels_seen
    assert [bool(pixels.any()) for pixels in batch] == [True, False, True, True]
    np.testing.assert_array_equal(result.images[[0, 2, 3]], sound.images[[0, 2, 3]])


def test_rows_are_the_same_whatever_the_batch_size_and_the_place_in_a_unit(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 11, captions=2)

    def rows(name: str, **sizes: Any) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        result = run(corpus, tmp_path / name, tiny_checkpoint, num_views=2, **sizes)
        return result.images, result.texts

    expected = rows("expected", batch_size=4, shard_rows=4)
    for name, sizes in {
        "longer units": {"batch_size": 4, "shard_rows": 16},
        "with workers": {"batch_size": 4, "shard_rows": 4, "decode_workers": 2},
    }.items():
        for one, other in zip(rows(name, **sizes), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(rows("other", batch_size=7, shard_rows=3), expected, strict=True):
        np.testing.assert_allclose(one.astype(float), other.astype(float), atol=1e-3)


# -- rejects


@pytest.fixture
def broken_corpus(tmp_path: Path) -> Path:
    """A table of 8 images, of which keys 2 to 6 cannot be read."""
    names = ["ok0", "ok1", "missing", "vanished", "truncated", "page", "empty", "ok7"]
    lines = [
        {
            "image": f"{name}.png",
            "key": name,
            "captions": [f"Caption {i}"],
            "missing": name == "missing",
        }
        for i, name in enumerate(names)
    ]
    table = write_table_corpus(tmp_path / "corpus", lines)
    folder = table.parent
    data = (folder / "truncated.png").read_bytes()
    (folder / "truncated.png").write_bytes(data[: len(data) // 2])
    (folder / "page.png").write_text("<html>this image is gone</html>")
    (folder / "empty.png").write_bytes(b"")
    return table


class VanishingProgress(SilentProgress):
    """Removes a file once the corpus is planned."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def say(self, message: str) -> None:
        super().say(message)
        if message.startswith("loading teacher"):
            self._path.unlink()


def test_images_that_cannot_be_read_are_listed_with_a_reason_and_the_rest_is_built(
    broken_corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    vanishing = VanishingProgress(broken_corpus.parent / "vanished.png")
    cache = tmp_path / "cache"
    result = run(broken_corpus, cache, tiny_checkpoint, progress=vanishing, shard_rows=4)
    reasons = reasons_of(result.cache)
    assert list(reasons) == ["missing", "vanished", "truncated", "page", "empty"]
    assert reasons["missing"] == reasons["vanished"] == "no such file"
    assert reasons["truncated"].startswith("damaged image: ")
    assert reasons["page"] == "not an image: it is a web page"
    assert reasons["empty"] == "empty: 0 bytes"

    is_nan = np.isnan(result.images).all(axis=(1, 2))
    assert is_nan.tolist() == [False, False, True, True, True, True, True, False]
    for row in (0, 1, 7):
        expected = embed_file(broken_corpus.parent / f"ok{row}.png")
        np.testing.assert_allclose(result.images[row, 0].astype(float), expected, atol=1e-3)
    assert not np.isnan(result.texts).any()
    assert len(result.texts) == 8  # captions of rejected images, too

    parts = [cache / layout.images_part(result.summary.teacher, unit) for unit in (0, 1)]
    images = pl.concat([pl.read_parquet(part) for part in parts])
    for column in ("width", "height", "sha256"):
        assert images[column].is_null().to_list() == is_nan.tolist()

    assert result.summary.num_rejected == 5
    assert result.progress.tally.num_rejected == {"image": 5, "text": 0}
    assert verify_cache(result.cache).faults == []
    config = config_of(broken_corpus, cache, tiny_checkpoint)
    text = "\n".join(summary_lines(config, result.summary))
    assert "rejected   5 rows of the cache:" in text
    assert "           missing: no such file" in text
    assert "           empty: empty: 0 bytes" in text
    assert "--retry-rejected tries them again" in text


def test_retry_rejected_embeds_only_those_and_leaves_the_bits_of_other_rows_alone(
    broken_corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"shard_rows": 4, "batch_size": 2}
    before = run(broken_corpus, tmp_path / "cache", tiny_checkpoint, **settings)
    assert before.summary.num_rejected == 4  # nothing vanished here
    for i, name in ((2, "missing"), (5, "page")):
        draw_image(i).save(broken_corpus.parent / f"{name}.png")
    # A row that stands may not change, even if its image has meanwhile.
    draw_image(99).save(broken_corpus.parent / "vanished.png")

    after = run(broken_corpus, tmp_path / "cache", tiny_checkpoint, retry_rejected=True, **settings)
    assert reasons_of(after.cache) == {
        key: reasons_of(before.cache)[key] for key in ("truncated", "empty")
    }
    assert after.teacher.texts_seen == []
    assert len(after.teacher.image_batches) == 3  # rows 2-3, 4-5, 6-7; not 0-1
    assert after.summary.num_units == 2
    assert after.summary.num_images == 4
    assert after.progress.tally.done == after.progress.tally.totals == {"image": 4, "text": 0}
    np.testing.assert_array_equal(after.texts, before.texts)
    np.testing.assert_array_equal(after.images[[0, 1, 3, 7]], before.images[[0, 1, 3, 7]])
    for row, name in ((2, "missing"), (5, "page")):
        expected = embed_file(broken_corpus.parent / f"{name}.png")
        np.testing.assert_allclose(after.images[row, 0].astype(float), expected, atol=1e-3)
    assert verify_cache(after.cache).faults == []


def test_retry_rejected_writes_nothing_where_nothing_was_mended(
    broken_corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run(broken_corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    before = tree_of(tmp_path / "cache")
    again = run(
        broken_corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=4, retry_rejected=True
    )
    assert tree_of(tmp_path / "cache") == before
    assert again.summary.num_units == 0
    assert again.summary.num_rejected == 4


def test_rejected_rows_are_not_tried_again_without_being_asked(
    broken_corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run(broken_corpus, tmp_path / "cache", tiny_checkpoint)
    config = config_of(broken_corpus, tmp_path / "cache", tiny_checkpoint)
    summary = build(config, progress=SilentProgress(), make_teacher=no_teacher)
    assert (summary.num_units, summary.num_rejected) == (0, 4)


def test_a_build_of_which_every_image_is_rejected_fails_and_names_the_first(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    for path in corpus.glob("*.png"):
        path.write_bytes(b"nonsense")
    message = (
        r"every image was rejected \(3 of 3\), the first: img000: not an image: it is text, "
        r'"nonsense"; repair them and run again with --retry-rejected, or use --corpus-root OLD=NEW'
    )
    for _ in range(2):  # the second has nothing to do, and the corpus is no better
        with pytest.raises(BuildError, match=message):
            run(corpus, tmp_path / "cache", tiny_checkpoint)


def test_a_build_of_which_every_text_is_rejected_fails_and_names_the_first(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    class NoTextTower(Teacher):
        def embed_texts(self, texts: Sequence[str]) -> Callable[[], NDArray[np.float32]]:
            rows = super().embed_texts(texts)()
            return lambda: rows * np.float32(np.nan)

    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    message = (
        r"every text was rejected \(1 of 1\), the first: text row 0: the teacher returned an "
        r"embedding that is not finite; the checkpoint's text tower is probably damaged"
    )
    for _ in range(2):  # the second has nothing to do, and is no success either
        with pytest.raises(BuildError, match=message):
            run(corpus, tmp_path / "cache", tiny_checkpoint, NoTextTower())


def test_an_embedding_that_is_not_finite_rejects_its_row(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    class Overflowing(Teacher):
        def embed_images(self, pixels_BHWC: NDArray[np.uint8]) -> Any:
            wait = super().embed_images(pixels_BHWC)
            return lambda: wait() * np.array([[np.inf], *[[1.0]] * (len(pixels_BHWC) - 1)])

        def embed_texts(self, texts: Sequence[str]) -> Any:
            wait = super().embed_texts(texts)
            scale = [[np.nan if text == "Picture 3" else 1.0] for text in texts]
            return lambda: wait() * np.array(scale)

    corpus = write_folder_corpus(tmp_path / "corpus", 6)
    result = run(corpus, tmp_path / "cache", tiny_checkpoint, Overflowing(), batch_size=3)
    reason = "the teacher returned an embedding that is not finite"
    assert reasons_of(result.cache) == {"img000": reason, "img003": reason, None: reason}
    assert result.progress.tally.num_rejected == {"image": 2, "text": 1}
    assert result.summary.first_rejected[-1] == f"text row 1: {reason}"
    assert np.isnan(result.images[:, 0]).all(axis=1).tolist() == [True, False, False] * 2
    assert np.isnan(result.texts).all(axis=1).tolist() == [False, True]
    assert verify_cache(result.cache).faults == []


# -- a corpus that grows, another teacher


def test_new_samples_are_appended_and_only_they_are_embedded(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 5)
    before = run(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    old = {p: d for p, d in tree_of(tmp_path / "cache").items() if not p.endswith("zarr.json")}
    write_folder_corpus(corpus, 3, first=5)
    after = run(corpus, tmp_path / "cache", tiny_checkpoint)
    assert after.teacher.texts_seen == ["Picture 6", "", "", ""]
    assert sum(p.any() for batch in after.teacher.pixels_seen for p in batch) == 3
    assert old.items() <= tree_of(tmp_path / "cache").items()
    samples = after.cache.samples().collect()
    assert samples["row"].to_list() == [0, 1, 2, 3, 4, 8, 9, 10]  # 5..7 stay empty: a new unit
    np.testing.assert_array_equal(after.images[:5], before.images)
    expected = np.stack([embed_file(corpus / f"img{i:03d}.png") for i in (5, 6, 7)])
    stored = after.cache.image_targets().read([8, 9, 10]).astype(float)
    np.testing.assert_allclose(stored, expected, atol=1e-3)
    assert verify_cache(after.cache).faults == []


@pytest.fixture(scope="module")
def other_checkpoint(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Other weights in a folder of the same name."""
    folder = tmp_path_factory.mktemp("others") / "tiny"
    return make_checkpoint("tiny-patch16-64", folder, dtype="float32", seed=5)


def test_a_second_teacher_is_added_beside_the_first(
    tiny_checkpoint: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    corpus, cache = write_folder_corpus(tmp_path / "corpus", 5), tmp_path / "cache"
    first = run(corpus, cache, tiny_checkpoint, shard_rows=4)
    assert first.cache.teachers == ("tiny",)  # the checkpoint's name
    before = tree_of(cache)
    noisy = Teacher(noise_seed=1)
    second = run(corpus, cache, other_checkpoint, noisy, teacher_name="second")
    assert second.cache.teachers == ("second", "tiny")
    assert before.items() <= tree_of(cache).items()
    assert second.images.shape == first.images.shape
    assert (second.images != first.images).any(axis=-1).all()
    assert verify_cache(second.cache).faults == []


def test_another_checkpoint_under_a_known_name_is_refused_and_the_differences_are_named(
    tiny_checkpoint: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    run(corpus, tmp_path / "cache", tiny_checkpoint)
    message = (
        r"teacher 'tiny' of .*cache is not .*tiny: weights_sha256 was [0-9a-f]{12}\.\.\. and is "
        r"[0-9a-f]{12}\.\.\.; to add it as a second teacher, give it another name with "
        r"--teacher-name"
    )
    with pytest.raises(SettingError, match=message) as caught:
        run(corpus, tmp_path / "cache", other_checkpoint)
    assert "compute_dtype" not in str(caught.value)  # what is alike is not listed


def test_a_changed_dtype_is_refused_with_both_values(tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    run(corpus, tmp_path / "cache", tiny_checkpoint, dtype="float32")
    with pytest.raises(SettingError, match="compute_dtype was float32 and is bfloat16"):
        run(corpus, tmp_path / "cache", tiny_checkpoint, dtype="bfloat16")


def write_photographs(corpus: Path) -> Path:
    """JPEGs so large that scaled decoding gives other pixels than exact."""
    corpus.mkdir()
    for i in range(5):
        draw_image(i, (400, 300)).save(corpus / f"{i}.jpg")
    return corpus


def test_scaled_decoding_is_another_teacher_and_a_later_run_takes_it_over(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus, cache = write_photographs(tmp_path / "corpus"), tmp_path / "cache"
    exact = run(corpus, tmp_path / "exact", tiny_checkpoint)
    scaled = run(corpus, cache, tiny_checkpoint, decode="scaled")
    assert exact.cache.teacher("tiny").identity["image_decode"] == "exact"
    assert scaled.cache.teacher("tiny").identity["image_decode"] == "scaled"
    assert (scaled.images != exact.images).any()
    cosines = (scaled.images.astype(float) * exact.images).sum(axis=-1)
    assert cosines.min() > 0.95  # of blocks of 4 pixels, far rougher than photographs
    true_sizes = images_of(scaled.cache).select("width", "height").rows()
    assert true_sizes == [(400, 300)] * 5

    with pytest.raises(SettingError, match="image_decode was scaled and is exact; to add it"):
        run(corpus, cache, tiny_checkpoint, decode="exact")
    with pytest.raises(SettingError, match="image_decode was exact and is scaled; to add it"):
        run(corpus, tmp_path / "exact", tiny_checkpoint, decode="scaled")
    draw_image(9, (400, 300)).save(corpus / "9.jpg")
    appended = run(corpus, cache, tiny_checkpoint)  # decode left out
    alone = run(corpus, tmp_path / "alone", tiny_checkpoint, decode="scaled")
    np.testing.assert_array_equal(appended.images[-1], alone.images[-1])


def test_a_compiled_teacher_is_another_teacher_of_a_cache(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus, cache = write_folder_corpus(tmp_path / "corpus", 3), tmp_path / "cache"
    loaded: list[FakeTeacher] = []

    def load(*_: Any) -> FakeTeacher:
        loaded.append(FakeTeacher())
        return loaded[-1]

    def build_with(**settings: Any) -> list[str]:
        config = config_of(corpus, cache, tiny_checkpoint, **settings)
        build(config, progress=SilentProgress(), make_teacher=load)
        return list(open_cache(cache).teachers)

    assert build_with() == ["tiny"]
    with pytest.raises(
        SettingError, match=r"compiled was False and is True; to add it as a second"
    ):
        build_with(compile=True)
    assert build_with(compile=True, teacher_name="tiny-compiled") == ["tiny", "tiny-compiled"]
    assert [teacher.is_compiled for teacher in loaded] == [False, True]
    records = open_cache(cache).teacher_records
    assert "compiled" not in records["tiny"].identity  # as in earlier caches
    assert records["tiny-compiled"].identity["compiled"] is True
    draw_image(9).save(corpus / "9.png")
    build_with(teacher_name="tiny-compiled")  # as recorded
    build_with(compile=False)
    assert [teacher.is_compiled for teacher in loaded[2:]] == [True, False]
    live = LiveTeacher(open_cache(cache), teacher="tiny-compiled", make_teacher=load)
    assert loaded[-1].is_compiled
    assert live.embed_texts(["x"]).shape == (1, loaded[-1].embed_dim)


def test_a_teacher_whose_record_does_not_say_how_it_decoded_decoded_exactly(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus, cache = write_photographs(tmp_path / "corpus"), tmp_path / "cache"
    made = run(corpus, cache, tiny_checkpoint).cache.teacher("tiny")
    older = replace(made, identity={k: v for k, v in made.identity.items() if k != "image_decode"})
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    same = identity_differences(older, checkpoint, TeacherChoices(decode="exact"))
    other = identity_differences(older, checkpoint, TeacherChoices(decode="scaled"))
    assert (same, other) == ([], ["image_decode was exact and is scaled"])


def test_a_cache_of_before_transparency_was_recorded_is_read_and_not_built_on_with_other_pixels(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus, white = write_photographs(tmp_path / "corpus"), tmp_path / "tiny"
    Image.new("RGB", (9, 9), "red").save(corpus / "clear.png", transparency=(255, 0, 0))
    older = run(corpus, tmp_path / "cache", tiny_checkpoint)  # do_convert_rgb null: ignored
    made = older.cache.teacher("tiny")
    assert made.identity["image_transparency"] == "ignored"
    unsaid = {k: v for k, v in made.identity.items() if k != "image_transparency"}
    record = replace(made, identity=unsaid)
    assert (
        identity_differences(record, resolve_checkpoint(str(tiny_checkpoint)), TeacherChoices())
        == []
    )

    shutil.copytree(tiny_checkpoint, white)
    settings = json.loads((white / "preprocessor_config.json").read_text())
    settings["do_convert_rgb"] = True
    (white / "preprocessor_config.json").write_text(json.dumps(settings))
    differences = identity_differences(record, resolve_checkpoint(str(white)), TeacherChoices())
    assert differences == ["image_transparency was ignored and is on white"]
    with pytest.raises(SettingError, match="image_transparency was ignored and is on white; to ad"):
        run(corpus, tmp_path / "cache", white)
    # Reading goes on: the live teacher sees what the cache's teacher saw.
    found: list[Checkpoint] = []

    def load(checkpoint: Checkpoint, *_: str) -> Teacher:
        found.append(checkpoint)
        return Teacher()

    checked = verify_live(older.cache, 6, checkpoint=str(white), make_teacher=load)
    assert (checked.faults, checked.cosines["image"].count) == ([], 6)
    assert [checkpoint.image.on_white for checkpoint in found] == [False]


def test_samples_are_verified_and_timed_with_the_decoding_that_the_cache_recorded(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus, cache = write_photographs(tmp_path / "corpus"), tmp_path / "cache"
    built = run(corpus, cache, tiny_checkpoint, decode="scaled", batch_size=5)
    live = Teacher()
    assert verify_live(built.cache, 5, make_teacher=lambda *_: live).faults == []
    timed = Teacher()
    config = config_of(corpus, cache, tiny_checkpoint, batch_size=5)
    dry_run(config, is_timed=True, make_teacher=lambda *_: timed)
    for teacher in (live, timed):
        np.testing.assert_array_equal(teacher.pixels_seen[0], built.teacher.pixels_seen[0])


def images_of(cache: Cache) -> pl.DataFrame:
    return read_table(cache.files.fetch(layout.images_part("tiny", 0), {}))


def test_a_checkpoint_that_moved_is_recognised(tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    run(corpus, tmp_path / "cache", tiny_checkpoint)
    moved = shutil.copytree(tiny_checkpoint, tmp_path / "moved" / "elsewhere")
    config = config_of(corpus, tmp_path / "cache", moved)
    summary = build(config, progress=SilentProgress(), make_teacher=no_teacher)
    assert (summary.teacher, summary.num_units) == ("tiny", 0)


def test_what_is_known_wrong_is_refused_before_the_corpus_is_planned(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus, cache = write_folder_corpus(tmp_path / "corpus", 3), tmp_path / "cache"
    for settings, message in (
        ({"dtype": "int8"}, "dtype 'int8' is not one of auto, float32, bfloat16, float16"),
        ({"device": "gpu"}, "device 'gpu' is not one of auto, cpu, cuda, cuda:NUMBER, mps"),
        ({"decode": "fast"}, "decode 'fast' is not one of exact, scaled"),
        ({"batch_size": 0}, "batch size must be 1 to 65,536, got 0"),
        ({"decode_workers": -1}, "decode workers must be 0 to 1,024, got -1"),
        ({"decode_workers": 10**9}, "decode workers must be 0 to 1,024, got 1000000000"),
        ({"sample_timeout_s": 0.0}, r"sample timeout must be above 0 s, got 0\.0"),
        ({"sample_timeout_s": math.nan}, "sample timeout must be above 0 s, got nan"),
    ):
        with pytest.raises(SettingError, match=message):
            run(corpus, cache, tiny_checkpoint, **settings)
    cache.write_text("a file")
    with pytest.raises(SettingError, match="cache is a file; name a folder for the cache"):
        run(corpus, cache, tiny_checkpoint)
    with pytest.raises(SettingError, match=r"the name of the cache folder, .*, is not UTF-8"):
        run(corpus, tmp_path / "caf\udce9", tiny_checkpoint)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "corpus"]


def test_a_finished_cache_is_a_no_op_that_imports_no_torch(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 5)
    run(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    before = tree_of(tmp_path / "cache")
    program = (
        "import atexit, sys\n"
        "from siglip2_cache.cli import main\n"
        "heavy = {'torch', 'transformers', 'zarr', 'PIL.Image'}\n"
        "atexit.register(lambda: print('heavy', sorted(heavy & sys.modules.keys())))\n"
        "main()"
    )
    arguments = ["build", corpus, tmp_path / "cache", "--teacher", tiny_checkpoint]
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "nothing to do: " in result.stdout
    heavy = result.stdout.splitlines()[-1]
    assert "torch" not in heavy
    assert "transformers" not in heavy
    assert tree_of(tmp_path / "cache") == before


# -- memory, provenance, interruption, damage, disk


def test_a_batch_that_does_not_fit_is_halved_for_good_and_the_size_is_recorded(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 10)
    small = Teacher(fits=2)
    sizes: dict[str, Any] = {"batch_size": 8, "shard_rows": 8}
    result = run(corpus, tmp_path / "cache", tiny_checkpoint, small, **sizes)
    expected = run(corpus, tmp_path / "expected", tiny_checkpoint, **sizes)
    assert small.image_batches == [8, 4, 2, 2, 2, 2, 2]
    assert small.text_batches == [8, 4, 2, 2]
    assert (result.summary.image_batch, result.summary.text_batch) == (2, 2)
    units = result.cache.commits().units
    assert {place: unit.batch_size for place, unit in units.items()} == {
        ("image", 0): 2,
        ("image", 1): 2,
        ("text", 0): 2,
    }
    np.testing.assert_allclose(
        result.images.astype(float), expected.images.astype(float), atol=1e-3
    )
    np.testing.assert_allclose(result.texts.astype(float), expected.texts.astype(float), atol=1e-3)
    assert {unit.batch_size for unit in expected.cache.commits().units.values()} == {8}


def test_a_teacher_that_not_even_one_image_fits_stops_the_build(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    with pytest.raises(BuildError, match="a batch of 1 does not fit"):
        run(corpus, tmp_path / "cache", tiny_checkpoint, Teacher(fits=0))


def test_provenance_is_recorded_and_a_difference_is_only_a_warning(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    first = run(corpus, tmp_path / "cache", tiny_checkpoint)
    write_folder_corpus(corpus, 2, first=3)
    same = run(corpus, tmp_path / "cache", tiny_checkpoint)
    write_folder_corpus(corpus, 2, first=5)
    other = run(corpus, tmp_path / "cache", tiny_checkpoint, Teacher(device_name="another"))
    warning = (
        "warning: device_name was a card and is another: embeddings may differ from earlier ones "
        "in rounding"
    )
    assert not [said for said in same.progress.said if "warning" in said]
    assert warning in other.progress.said
    assert not [said for said in first.progress.said if "warning" in said]
    units = other.cache.commits().units
    names = [units["image", number].provenance["device_name"] for number in range(3)]
    assert names == ["a card", "a card", "another"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_finishes_its_batch_and_the_next_run_completes_the_same_bytes(
    number: signal.Signals, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 12)
    undisturbed = run_command(corpus, tmp_path / "expected", tiny_checkpoint)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert undisturbed.stdout.count("batch\n") == 8  # 3 units of 2 of images, 1 unit of 2 of texts

    # In the first of the two batches of the second unit.
    stopped = run_command(corpus, tmp_path / "cache", tiny_checkpoint, number=number, at_batch=3)
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == (
        "stopped; finished units are kept, run the same command again to resume"
    )
    assert "Traceback" not in stopped.stderr
    assert stopped.stdout == "batch\nbatch\nbatch\nbatch 3 done\n"
    assert list(open_cache(tmp_path / "cache").commits().units) == [("image", 0)]

    resumed = run_command(corpus, tmp_path / "cache", tiny_checkpoint)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("batch\n") == 6
    assert tree_of(tmp_path / "cache") == tree_of(tmp_path / "expected")


def run_command(
    corpus: Path, cache: Path, checkpoint: Path, *, number: int = 0, at_batch: int = -1
) -> subprocess.CompletedProcess[str]:
    """Run the command line with a fake teacher that says ``batch``, and may signal its process."""
    program = f"""
import os, sys
sys.path.insert(0, {str(KIT.parent)!r})
from kit.fakes import FakeTeacher
from siglip2_cache.cli import main
from siglip2_cache.precompute.teacher import siglip_teacher

def before_batch():
    print("batch", flush=True)
    if len(fake.image_batches) == {at_batch}:
        os.kill(os.getpid(), {int(number)})
        print("batch {at_batch} done", flush=True)

fake = FakeTeacher(before_batch=before_batch)
siglip_teacher.SiglipTeacher = lambda *_, **settings: fake
main()
"""
    arguments = ["build", corpus, cache, "--teacher", checkpoint, "--shard-rows", 4]
    options = ["--batch-size", 2, "--decode-workers", 0, "--dtype", "float32", "--device", "cpu"]
    return processes.run([sys.executable, "-c", program, *arguments, *options])


def test_a_unit_whose_record_is_damaged_is_made_again_with_a_warning(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 8)
    first = run(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    record = tmp_path / "cache" / layout.unit_record("tiny", "image", 1, 0)
    record.write_bytes(record.read_bytes().replace(b'"num_rows": 4', b'"num_rows": 3'))
    again = run(corpus, tmp_path / "cache", tiny_checkpoint)
    [warning] = [said for said in again.progress.said if said.startswith("warning: ")]
    assert str(record) in warning
    assert warning.endswith("; the unit is made again")
    assert (again.summary.num_units, again.summary.num_images) == (1, 4)
    np.testing.assert_array_equal(again.images, first.images)
    assert verify_cache(again.cache).faults == []


@pytest.mark.parametrize("num_views", [1, 3])
def test_the_estimate_equals_the_bytes_then_written(
    num_views: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 40, captions=3)
    cache = tmp_path / "cache"
    config = config_of(corpus, cache, tiny_checkpoint, num_views=num_views, shard_rows=16)
    found = dry_run(config, is_timed=False, make_teacher=no_teacher)
    assert not cache.exists()
    build(config, progress=SilentProgress(), make_teacher=lambda *_: Teacher())

    sizes = {path: len(data) for path, data in tree_of(cache).items()}
    shards = sum(size for path, size in sizes.items() if ".zarr/c/" in path)
    catalog = sum(size for path, size in sizes.items() if path.startswith("catalog/"))
    assert found.num_target_bytes == shards + 44 * 40  # 44 a row for images/*.parquet
    assert found.num_catalog_bytes == catalog
    units = open_cache(cache).commits().units
    assert found.num_units == {m: sum(1 for n, _ in units if n == m) for m in ("image", "text")}
    assert (found.num_images, found.num_texts) == (40, open_cache(cache).num_texts)

    rest = dry_run(config, is_timed=False, make_teacher=no_teacher)
    assert (rest.num_images, rest.num_texts, rest.num_target_bytes) == (0, 0, 0)


def test_the_images_part_of_a_large_unit_takes_the_bytes_a_row_that_the_estimate_says() -> None:
    from siglip2_cache.precompute.estimate.disk import _IMAGES_ROW_BYTES
    from siglip2_cache.store.format.catalog import IMAGES_SCHEMA, encode_table

    num_rows = 16_384
    random = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "row": np.arange(num_rows),
            "width": random.integers(300, 4000, num_rows, np.int32),
            "height": random.integers(300, 4000, num_rows, np.int32),
            "sha256": [random.bytes(32) for _ in range(num_rows)],
        }
    )
    num_bytes = len(encode_table(frame, IMAGES_SCHEMA))
    assert 0.8 * _IMAGES_ROW_BYTES < num_bytes / num_rows < _IMAGES_ROW_BYTES


def test_a_retry_makes_a_damaged_unit_whole_instead_of_certifying_its_bytes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 4)
    good = (corpus / "img002.png").read_bytes()
    (corpus / "img002.png").write_bytes(b"nonsense")
    config = config_of(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    expected = open_cache(tmp_path / "cache").image_targets().read([0, 1, 3])
    shard = tmp_path / "cache" / layout.shard("tiny", "image", 0)
    data = bytearray(shard.read_bytes())
    data[5] ^= 0x10
    shard.write_bytes(data)
    (corpus / "img002.png").write_bytes(good)
    progress = SilentProgress()
    build(
        replace(config, retry_rejected=True),
        progress=progress,
        make_teacher=lambda *_: FakeTeacher(),
    )
    mended = open_cache(tmp_path / "cache")
    np.testing.assert_array_equal(mended.image_targets().read([0, 1, 3]), expected)
    assert any("is damaged; its whole unit is made again" in line for line in progress.said)


def test_a_retry_of_a_unit_with_intact_targets_loses_none_of_them(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 8)
    good = {name: (corpus / name).read_bytes() for name in ("img000.png", "img001.png")}
    (corpus / "img002.png").write_bytes(b"nonsense")
    cache = tmp_path / "cache"
    config = config_of(corpus, cache, tiny_checkpoint, shard_rows=4, changed="skip")
    build(config, progress=SilentProgress(), make_teacher=make_fake)
    seen = layout.images_part("tiny", 0)
    data = bytearray((cache / seen).read_bytes())
    data[len(data) // 2] ^= 1
    (cache / seen).write_bytes(data)
    draw_image(2).save(corpus / "img002.png")
    for name in good:
        (corpus / name).unlink()
    before, progress = tree_of(cache / "teachers/tiny"), SilentProgress()
    again = replace(config, retry_rejected=True)
    summary = build(again, progress=progress, make_teacher=make_fake)
    after = tree_of(cache / "teachers/tiny")
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == {"commits/arrays-00001.json"}  # of the plan
    assert (summary.num_units, summary.num_rejected) == (0, 1)
    assert [line for line in progress.said if line.startswith("warning")] == [
        f"warning: {seen} is damaged; its whole unit is made again",
        "warning: image unit 0 (rows 0..3) stays as it is: made again it would lose 2 rows with an intact "
        "target (first: row 0: no such file); make these files readable, or restore the damaged file from a "
        "copy, and run again with --retry-rejected",
    ]
    for name, content in good.items():
        (corpus / name).write_bytes(content)
    build(again, progress=SilentProgress(), make_teacher=make_fake)
    mended = open_cache(cache)
    assert verify_cache(mended).faults == []
    assert mended.image_targets().available_rows().tolist() == list(range(8))


def test_a_damaged_shard_is_made_again_even_if_rows_of_it_cannot_be(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 4)
    (corpus / "img002.png").write_bytes(b"nonsense")
    cache = tmp_path / "cache"
    config = config_of(corpus, cache, tiny_checkpoint, shard_rows=4, changed="skip")
    build(config, progress=SilentProgress(), make_teacher=make_fake)
    (cache / layout.shard("tiny", "image", 0)).write_bytes(b"")
    (corpus / "img000.png").unlink()
    build(replace(config, retry_rejected=True), progress=SilentProgress(), make_teacher=make_fake)
    mended = open_cache(cache)
    assert verify_cache(mended).faults == []
    assert mended.image_targets().available_rows().tolist() == [1, 3]


def make_fake(*_: object) -> FakeTeacher:
    return FakeTeacher()
