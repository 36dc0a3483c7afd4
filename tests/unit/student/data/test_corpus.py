"""What a student learns from: rows with a target, their captions, the split. The teacher is a fake one."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from kit.fakes import FakeTeacher, SilentProgress, config_of, draw_image, write_table_corpus
from numpy.typing import NDArray

from siglip2_cache import open_cache
from siglip2_cache.errors import DamagedCacheError, SettingError, TrainError
from siglip2_cache.precompute.build import build
from siglip2_cache.store.cache import Cache
from siglip2_cache.student.data.corpus import Corpus
from siglip2_cache.student.data.read_corpus import read_corpus
from siglip2_cache.student.data.split import SplitPolicy, number_pictures

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

NO_SPLIT = SplitPolicy(val_share=0)

# What the foreign cache holds: rows 0-14, a gap of 15-17, rows 18-21; images 8, 9, 20 and text 3 rejected.
FOREIGN_ROWS = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 18, 19, 21]
FOREIGN_CAPTIONS = {
    0: [0, 1],
    1: [1],
    3: [2],
    5: [4],
    6: [4],
    7: [5],  # as "de" and as "nl": a caption once
    14: [6, 7],
    18: [1],
    19: [12],
    21: [13, 14],
}

# Keys, captions, and from which seed the picture is drawn: 0 and 5, 2 and 7 are the same bytes.
PICTURES = [0, 1, 2, 3, 4, 0, 6, 2, 8, 9]
CAPTIONS = [["a", "b"], ["a"], [], ["c"], ["d", "d"], ["e"], ["f"], ["a", "g"], [], ["h"]]


def built(source: Path, cache: Path, checkpoint: Path, **settings: Any) -> Cache:
    config = config_of(source, cache, checkpoint, **settings)
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    return open_cache(cache)


def write_pictures(root: Path, keys: list[str]) -> Path:
    root.mkdir()
    for i, seed in enumerate(PICTURES):
        draw_image(seed).save(root / f"{i}.png")
    lines = [
        {"image": f"{i}.png", "key": key, "captions": captions}
        for i, (key, captions) in enumerate(zip(keys, CAPTIONS, strict=True))
    ]
    return write_table_corpus(root, lines)


@pytest.fixture(scope="module")
def small(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Ten images of eight pictures; read it, do not change it."""
    folder = tmp_path_factory.mktemp("small")
    keys = [f"{'test' if i in (5, 9) else 'train'}/{i}" for i in range(10)]
    table = write_pictures(folder / "corpus", keys)
    return built(table, folder / "cache", tiny_checkpoint, shard_rows=4)


@pytest.fixture(scope="module")
def many(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """600 images, every third the same picture as the one before it."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "corpus").mkdir()
    for i in range(600):
        draw_image(i - (i % 3 == 2), (4, 4)).save(folder / f"corpus/{i:03d}.png")
    return built(folder / "corpus", folder / "cache", tiny_checkpoint, shard_rows=256)


def captions_of(corpus: Corpus) -> dict[int, list[int]]:
    """The text_rows of captions by row; images without one are left out."""
    start_N = corpus.caption_start
    return {
        row: corpus.caption_text_row[start_N[i] : start_N[i + 1]].tolist()
        for i, row in enumerate(corpus.rows_N.tolist())
        if start_N[i] < start_N[i + 1]
    }


def val_rows(cache: Cache, **policy: Any) -> set[int]:
    corpus = read_corpus(cache, None, SplitPolicy(**policy))
    return set(corpus.rows_N[corpus.is_val_N].tolist())


def text_rows_of(cache: Cache, *texts: str) -> NDArray[np.int64]:
    by_text = dict(cache.texts().select("text", "text_row").collect().iter_rows())
    return np.array([by_text[text] for text in texts])


# -- rows and captions


def test_gaps_and_rejected_rows_and_texts_do_not_appear(foreign: "ForeignCache") -> None:
    corpus = read_corpus(open_cache(foreign.root), None, NO_SPLIT)
    assert corpus.rows_N.tolist() == FOREIGN_ROWS
    assert captions_of(corpus) == FOREIGN_CAPTIONS  # row 4 has only text 3, which was rejected
    assert corpus.langs == ("de", "en", "nl", None)
    assert (corpus.num_images, corpus.num_captions, corpus.num_captioned) == (16, 13, 10)
    assert corpus.text_rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 12, 13, 14]


def test_every_row_has_the_hash_of_its_picture(small: Cache) -> None:
    corpus = read_corpus(small, None, NO_SPLIT)
    files = small.table("files").collect()
    root = small.corpus_root("")
    expected = [hashlib.sha256((root / path).read_bytes()).digest() for path in files["path"]]
    assert [bytes(digest) for digest in corpus.sha256_N] == expected
    same = corpus.picture_N[:, None] == corpus.picture_N
    assert np.argwhere(np.triu(same, 1)).tolist() == [[0, 5], [2, 7]]


def test_hashes_that_begin_alike_are_told_apart() -> None:
    digests = np.zeros((5, 32), np.uint8)
    digests[[1, 3], 31] = 1  # between others that share their first 31 bytes
    digests[4, 0] = 9
    assert number_pictures(digests).tolist() == [0, 1, 0, 1, 4]


def test_a_caption_written_twice_counts_once_and_images_may_have_none(small: Cache) -> None:
    corpus = read_corpus(small, None, NO_SPLIT)
    assert corpus.caption_counts.tolist() == [2, 1, 0, 1, 1, 1, 1, 2, 0, 1]
    assert corpus.num_captioned == 8
    texts = dict(small.texts().select("text_row", "text").collect().iter_rows())
    found = [[texts[t] for t in captions_of(corpus).get(row, [])] for row in range(10)]
    assert found == [list(dict.fromkeys(captions)) for captions in CAPTIONS]


def test_captions_of_weight_0_are_not_counted_as_drawable(small: Cache) -> None:
    corpus = read_corpus(small, None, NO_SPLIT)
    weights = [0, 0.5, 0, 1, 1, 0, 2, 0, 0, 3]  # images 0 and 7 have two captions, 2 and 8 none
    weighed = replace(corpus, caption_weight=np.array(weights, float))
    assert weighed.drawable_counts.tolist() == [1, 0, 0, 1, 1, 0, 1, 0, 0, 1]
    assert weighed.num_captioned == 5


@pytest.mark.parametrize(
    ("weights", "weight"), [({"de": 0}, 1.0), ({"nl": 0}, 1.0), ({"de": 3, "nl": 2}, 3.0)]
)
def test_a_caption_in_two_languages_has_the_larger_of_their_weights(
    foreign: "ForeignCache", weights: dict[str, float], weight: float
) -> None:
    by_name = {f"language:{lang}": value for lang, value in weights.items()}
    corpus = read_corpus(open_cache(foreign.root), None, NO_SPLIT, caption_weights=by_name)
    assert corpus.caption_weight is not None
    of_row = dict(zip(corpus.rows_N.tolist(), corpus.caption_start.tolist(), strict=False))
    assert corpus.caption_weight[of_row[7]] == weight
    assert corpus.caption_weight[of_row[1]] == weights.get("de", 1)  # "de" only


def test_a_cache_without_captions_is_a_corpus_too(many: Cache) -> None:
    corpus = read_corpus(many, None, NO_SPLIT)
    assert (corpus.num_images, corpus.num_captions, corpus.langs) == (600, 0, ())
    none = np.empty(0, np.int64)
    assert corpus.matching_pairs(np.arange(3), none).shape == (2, 0)
    assert corpus.matching_pairs(np.arange(3), np.array([7])).shape == (2, 0)


def test_selecting_keeps_the_captions_of_what_is_kept(foreign: "ForeignCache") -> None:
    corpus = read_corpus(open_cache(foreign.root), None, NO_SPLIT)
    kept = corpus.select(np.isin(corpus.rows_N, [0, 4, 7, 21]))
    assert kept.rows_N.tolist() == [0, 4, 7, 21]
    assert captions_of(kept) == {row: FOREIGN_CAPTIONS[row] for row in (0, 7, 21)}
    assert (kept.sha256_N == corpus.sha256_N[[0, 4, 7, 15]]).all()
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(4,\)"):
        kept.select(np.array([True]))


# -- known pairs


def test_texts_of_an_image_and_of_its_duplicates_are_known_pairs(small: Cache) -> None:
    corpus = read_corpus(small, None, NO_SPLIT)
    texts = text_rows_of(small, "g", "e", "a", "h")  # no order
    pairs = corpus.matching_pairs(np.array([2, 0, 1, 4, 5, 0]), texts)
    named = [(int(i), "geah"[j]) for i, j in pairs.T]
    # Image 2 has no caption, but its duplicate 7 has "a" and "g"; 0 and 5 share "a", "b" and "e".
    assert named == [
        (0, "g"), (0, "a"), (1, "e"), (1, "a"), (2, "a"), (4, "e"), (4, "a"), (5, "e"), (5, "a"),
    ]  # fmt: skip


def test_known_pairs_of_a_part_are_those_of_its_images(small: Cache) -> None:
    corpus = read_corpus(small, None, NO_SPLIT)
    part = corpus.select(np.arange(10) >= 5)
    pairs = part.matching_pairs(np.array([0]), text_rows_of(small, "a", "b", "e"))
    assert pairs.tolist() == [[0], [2]]


# -- the split


def test_images_of_the_same_bytes_are_always_on_one_side(many: Cache) -> None:
    for share in (0.1, 0.3, 0.5, 0.9):
        corpus = read_corpus(many, None, SplitPolicy(val_share=share))
        for picture in np.unique(corpus.picture_N):
            assert len(set(corpus.is_val_N[corpus.picture_N == picture])) == 1


def test_the_share_is_of_pictures_and_a_smaller_one_lies_in_a_larger(many: Cache) -> None:
    before: set[int] = set()
    for share in (0.05, 0.2, 0.5, 0.8):
        corpus = read_corpus(many, None, SplitPolicy(val_share=share))
        pictures = np.unique(corpus.picture_N[corpus.is_val_N])
        deviation = (share * (1 - share) * 400) ** 0.5
        assert abs(len(pictures) - 400 * share) < 4 * deviation
        now = set(corpus.rows_N[corpus.is_val_N].tolist())
        assert before < now
        before = now
    assert val_rows(many, val_share=0) == set()


def test_the_split_is_the_one_that_the_format_describes(many: Cache) -> None:
    corpus = read_corpus(many, None, SplitPolicy(val_share=0.25))
    first_bytes = [bytes(digest[:8]) for digest in corpus.sha256_N]
    expected = [int.from_bytes(first, "big") / 2**64 < 0.25 for first in first_bytes]
    assert corpus.is_val_N.tolist() == expected
    assert 0 < sum(expected) < 600


def test_the_example_of_the_format_is_right() -> None:
    page = (Path(__file__).parents[4] / "docs/reference/format.md").read_text(encoding="utf-8")
    share = int.from_bytes(hashlib.sha256(b"abc").digest()[:8], "big") / 2**64
    assert f"the bytes `abc` give {share!r}" in page


def test_held_out_keys_take_their_duplicates_with_them(small: Cache) -> None:
    assert val_rows(small, val_keys="test/*") == {0, 5, 9}
    assert val_rows(small, val_keys="test/*", val_share=0.9) == {0, 5, 9}
    assert val_rows(small, val_keys="*/[23]") == {2, 3, 7}


def test_a_pattern_that_fits_no_key_is_refused_with_a_key_as_they_are(small: Cache) -> None:
    with pytest.raises(
        SettingError,
        match=r"val_keys 'valid/\*' matches no key of .*'train/0'\); use another pattern",
    ):
        read_corpus(small, None, SplitPolicy(val_keys="valid/*"))


@pytest.mark.parametrize("share", [-0.1, 1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(SettingError, match=rf"val_share must be 0 to below 1, got {share}"):
        SplitPolicy(val_share=share)


# -- caches that are not whole


def drop_unit(root: Path, modality: str, unit: int) -> None:
    (record,) = root.glob(f"teachers/*/commits/{modality}-{unit:05d}.json")
    record.unlink()


def test_an_unfinished_cache_is_refused_with_the_command_that_finishes_it(
    small: Cache, tmp_path: Path
) -> None:
    root = shutil.copytree(small.root, tmp_path / "my cache")
    drop_unit(root, "image", 1)
    with pytest.raises(TrainError) as refused:
        read_corpus(open_cache(root), None, NO_SPLIT)
    message = str(refused.value)
    assert f"{root} is unfinished: " in message
    assert "has not embedded 1 of 3 image units and 0 of 2 text units" in message
    assert f"siglip2-cache build {small.sources[''].location} '{root}' --teacher /" in message
    assert "--allow-partial" in message
    assert "\n" not in message


def test_what_is_committed_of_an_unfinished_cache_can_be_used(small: Cache, tmp_path: Path) -> None:
    root = shutil.copytree(small.root, tmp_path / "cache")
    drop_unit(root, "image", 1)
    drop_unit(root, "text", 0)  # texts a, b, c, d
    corpus = read_corpus(open_cache(root), None, NO_SPLIT, allow_partial=True)
    assert corpus.rows_N.tolist() == [0, 1, 2, 3, 8, 9]
    texts = text_rows_of(small, "e", "f", "g", "h")
    assert set(captions_of(corpus)) == {9}
    assert corpus.caption_text_row.tolist() == texts[3:].tolist()


def test_a_cache_without_any_target_is_refused_even_so(small: Cache, tmp_path: Path) -> None:
    root = shutil.copytree(small.root, tmp_path / "cache")
    for unit in range(3):
        drop_unit(root, "image", unit)
    with pytest.raises(
        TrainError, match=r"has no image with a target by tiny; run siglip2-cache build"
    ):
        read_corpus(open_cache(root), None, NO_SPLIT, allow_partial=True)


@pytest.mark.parametrize("damage", ["gone", "torn", "hash"])
def test_lost_hashes_are_damage_and_not_silence(small: Cache, tmp_path: Path, damage: str) -> None:
    root = shutil.copytree(small.root, tmp_path / "cache")
    part = root / "teachers/tiny/images/00001.parquet"
    if damage == "gone":
        part.unlink()
    elif damage == "torn":
        part.write_bytes(part.read_bytes()[:-9])
    else:
        sha256 = pl.when(pl.col("row") != 6).then(pl.col("sha256"))
        pl.read_parquet(part).with_columns(sha256=sha256).write_parquet(part)
    says = "lacks the hash of row 6, which" if damage == "hash" else "is missing or damaged"
    with pytest.raises(DamagedCacheError, match=rf"images/00001\.parquet {says}"):
        read_corpus(open_cache(root), None, NO_SPLIT)


def test_another_attempt_at_a_unit_counts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    table = write_pictures(tmp_path / "corpus", [str(i) for i in range(10)])
    broken = tmp_path / "corpus/3.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no picture")
    cache = built(table, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    rows = [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert read_corpus(cache, None, NO_SPLIT).rows_N.tolist() == rows
    broken.write_bytes(whole)
    again = built(table, tmp_path / "cache", tiny_checkpoint, shard_rows=4, retry_rejected=True)
    corpus = read_corpus(again, None, NO_SPLIT)
    assert corpus.rows_N.tolist() == list(range(10))
    assert bytes(corpus.sha256_N[3]) == hashlib.sha256(whole).digest()
