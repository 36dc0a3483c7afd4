"""Which training images are selected by the teacher's score of their captions, or by a list."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError
from siglip2_cache.store.cache import Cache
from siglip2_cache.student.data import select_images as module
from siglip2_cache.student.data.corpus import Corpus
from siglip2_cache.student.data.read_corpus import read_corpus
from siglip2_cache.student.data.select_images import caption_scores, select_images
from siglip2_cache.student.selection import Selection, parse_selection

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache


@pytest.fixture
def cache(foreign: "ForeignCache") -> Cache:
    return open_cache(foreign.root)


@pytest.fixture
def train(cache: Cache) -> Corpus:
    return read_corpus(cache, None, None, allow_partial=True)


def plain_scores(train: Corpus, cache: Cache) -> list[float]:
    """The mean cosine of each image and its captions, one at a time."""
    found: list[float] = []
    images, texts = cache.image_targets(), cache.text_targets()
    for i, row in enumerate(train.rows_N):
        own = train.caption_text_row[train.caption_start[i] : train.caption_start[i + 1]]
        u = images.read([row])[0].astype(np.float64)
        cosines = [float(u @ texts.read([text])[0].astype(np.float64)) for text in own]
        found.append(sum(cosines) / len(cosines) if cosines else np.nan)
    return found


@pytest.mark.parametrize("block", [65_536, 3])
def test_a_score_is_the_mean_cosine_of_an_image_and_its_captions(
    cache: Cache, train: Corpus, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    found = caption_scores(train, cache, cache.teacher(None).name)
    assert np.isnan(found).any()
    np.testing.assert_allclose(found, plain_scores(train, cache), atol=1e-6)


def test_captions_of_weight_0_count_neither_in_a_score_nor_as_captions(
    cache: Cache, train: Corpus
) -> None:
    first, second = np.flatnonzero(train.caption_counts == 2)[:2]
    weight_C = np.ones(train.num_captions)
    weight_C[train.caption_start[first]] = 0  # one of two
    weight_C[train.caption_start[second] : train.caption_start[second + 1]] = 0  # both
    name = cache.teacher(None).name
    found = caption_scores(replace(train, caption_weight=weight_C), cache, name)
    text = train.caption_text_row[train.caption_start[first] + 1]
    image_E = cache.image_targets().read([train.rows_N[first]])[0].astype(np.float64)
    text_E = cache.text_targets().read([text])[0].astype(np.float64)
    assert found[first] == pytest.approx(image_E @ text_E, abs=1e-6)
    assert np.isnan(found[second])
    others = np.setdiff1d(np.arange(len(train)), [first, second])
    np.testing.assert_array_equal(found[others], caption_scores(train, cache, name)[others])


def test_the_best_captioned_share_is_kept_and_told(cache: Cache, train: Corpus) -> None:
    name, scores = cache.teacher(None).name, plain_scores(train, cache)
    captioned = [i for i in range(len(train)) if not np.isnan(scores[i])]
    best = sorted(captioned, key=lambda i: -scores[i])[: round(0.4 * len(captioned))]
    is_used_N, line = select_images(train, cache, name, Selection("keep", share=0.4))
    assert np.flatnonzero(is_used_N).tolist() == sorted(best)
    assert line == (
        f"select keep=0.4: {len(best)} of {len(captioned)} captioned images, whose mean cosine to their "
        f"captions is at least {scores[best[-1]]:.3f} by the teacher; {len(train) - len(captioned)} without "
        f"a caption are left out; in as many steps each is shown {len(train) / len(best):.3g} times as often"
    )


def test_all_images_are_kept_without_a_line(cache: Cache, train: Corpus) -> None:
    is_used_N, line = select_images(train, cache, cache.teacher(None).name, Selection())
    assert is_used_N.all()
    assert line is None


def test_a_list_of_keys_selects_those_images(cache: Cache, train: Corpus, tmp_path: Path) -> None:
    keys = dict(cache.samples().select("row", "key").collect().iter_rows())
    wanted, file = train.rows_N[[1, 4]], tmp_path / "keys.txt"
    lines = "\r\n".join(keys[int(row)] for row in wanted) + "\n\n"
    file.write_bytes(lines.encode("utf-8-sig"))  # with a byte order mark
    name = cache.teacher(None).name
    is_used_N, line = select_images(train, cache, name, parse_selection(f"keys={file}"))
    assert train.rows_N[is_used_N].tolist() == wanted.tolist()
    assert line is not None
    assert line.startswith(f"select keys={file}: 2 of {len(train)} images of the train split; ")


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (None, r"select keys=.*keys.txt cannot be read \(.*No such file.*\); name a text file"),
        (b"\xff\xfe", r"select keys=.*keys.txt cannot be read \(.*utf-8.*\); name a text file"),
        (b"none\nnor", r"2 of 2 keys of .*keys.txt are not in .* \(such as 'none'\); remove them"),
        ("a\u2028b\nnor".encode(), r"2 of 2 keys of .* \(such as 'a\\u2028b'\); remove them"),
        (b"", r"keys.txt names no image of the train split of "),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(
    content: bytes | None, refusal: str, cache: Cache, train: Corpus, tmp_path: Path
) -> None:
    file = tmp_path / "keys.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingError, match=refusal):
        select_images(train, cache, cache.teacher(None).name, Selection("keys", file=file))


def test_a_share_of_images_without_any_caption_is_refused(cache: Cache, train: Corpus) -> None:
    without = train.select(np.diff(train.caption_start) == 0)
    with pytest.raises(SettingError, match=r"select keep=0.5 needs captions, and .* has none"):
        select_images(without, cache, cache.teacher(None).name, Selection("keep", share=0.5))
