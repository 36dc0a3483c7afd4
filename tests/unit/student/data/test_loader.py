"""Batches: each view's pixels with that view's target, the same whoever decodes and wherever one begins."""

import contextlib
import shutil
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kit.fakes import (
    FakeNaflexTeacher,
    FakeTeacher,
    SilentProgress,
    config_of,
    draw_image,
    write_folder_corpus,
)
from kit.memory_bucket import memory_bucket
from numpy.typing import NDArray
from PIL import Image

from siglip2_cache import open_cache
from siglip2_cache.errors import DamagedCacheError, SettingError
from siglip2_cache.images import prefetch_parquet as parquet_images
from siglip2_cache.images.catalog_refs import image_refs
from siglip2_cache.precompute.build import build
from siglip2_cache.siglip import (
    Checkpoint,
    TextTokenizer,
    resolve_checkpoint,
    with_max_num_patches,
)
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.format.augmentation import PRESETS
from siglip2_cache.store.format.views import WHOLE_IMAGE, ViewBox, pixel_box
from siglip2_cache.student.data import catalog_index
from siglip2_cache.student.data.catalog_index import ImageLookup
from siglip2_cache.student.data.corpus import Corpus
from siglip2_cache.student.data.loader import Batch, Loader, LoaderConfig
from siglip2_cache.student.data.read_corpus import read_corpus
from siglip2_cache.student.data.sampler import Sampler
from siglip2_cache.student.data.split import SplitPolicy
from siglip2_cache.student.data.train_targets import first_targets

NUM_VIEWS = 4
NUM_LEFT_OUT = 4
"""Rows that are not trained on, the first: a row is not a position."""

TOLERANCE = 2e-3  # float16


@dataclass(frozen=True)
class Made:
    """A cache made of a fake teacher with the student's own recipe, and its corpus."""

    cache: Cache
    corpus: Corpus
    folder: Path
    """Where the images are."""


def made(folder: Path, cache: Path, checkpoint: Path, teacher: Any = None, **settings: Any) -> Made:
    recipe = resolve_checkpoint(str(checkpoint)).image
    if teacher is None:
        teacher = FakeTeacher(image_size=recipe.size, resample=recipe.resample)
    config = config_of(folder, cache, checkpoint, num_views=NUM_VIEWS, shard_rows=16, **settings)
    build(config, progress=SilentProgress(), make_teacher=lambda *_: teacher)
    opened = open_cache(cache)
    whole = read_corpus(opened, None, SplitPolicy(val_share=0))
    return Made(opened, whole.select(whole.rows_N >= NUM_LEFT_OUT), folder)


def write_corpus(folder: Path) -> Path:
    """30 images of several shapes, two captions each but for every fifth; neighbours share one."""
    write_folder_corpus(folder, 30, captions=2)
    for i in range(30):  # large enough that no two views have the same pixels
        draw_image(i, (96, 64) if i % 5 else (40, 100)).save(folder / f"img{i:03d}.png")
    for i in range(0, 30, 5):
        (folder / f"img{i:03d}.txt").unlink()
    return folder


@pytest.fixture(scope="module")
def small(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Read it, do not change it."""
    folder = tmp_path_factory.mktemp("small")
    return made(write_corpus(folder / "corpus"), folder / "cache", tiny_checkpoint)


@pytest.fixture
def moved(small: Made, tmp_path: Path) -> Made:
    """The same with a copy of the images, to be changed."""
    folder = shutil.copytree(small.folder, tmp_path / "elsewhere")
    cache = open_cache(small.cache.root, corpus_roots={str(small.folder): str(folder)})
    return replace(small, cache=cache, folder=folder)


def loader_of(
    of: Made,
    checkpoint: Path | Checkpoint,
    *,
    towers: Any = "both",
    device: str = "cpu",
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> Loader:
    images = ImageLookup(of.cache, of.corpus)
    given = {"global_batch_size": 12, "num_views": NUM_VIEWS, "groups": images.groups}
    sampler = Sampler(of.corpus, **{**given, **settings})
    return Loader(
        of.cache,
        [first_targets(of.cache, None)],
        sampler,
        images,
        checkpoint if isinstance(checkpoint, Checkpoint) else resolve_checkpoint(str(checkpoint)),
        config=LoaderConfig(**{"num_workers": 0, **(config or {})}),
        towers=towers,
        device=device,
    )


def batches_of(
    of: Made, checkpoint: Path | Checkpoint, first: int, end: int, **settings: Any
) -> list[Batch]:
    with loader_of(of, checkpoint, **settings) as loader:
        return list(loader.batches(first, end))


def rows_of(of: Made, batch: Batch) -> list[int]:
    return of.corpus.rows_N[batch.positions_N].tolist()


def assert_own_captions(of: Made, batch: Batch) -> None:
    """Every image has one of its captions, or none where it has none."""
    captions = of.cache.captions().collect()
    for row, column in zip(rows_of(of, batch), batch.caption_NC[:, 0].tolist(), strict=True):
        own = captions.filter(row=row)["text_row"].to_list()
        assert (int(batch.text_rows_M[column]) in own) if column >= 0 else own == []


def assert_same(a: Batch, b: Batch) -> None:
    for x, y in zip(a.targets, b.targets, strict=True):
        np.testing.assert_array_equal(x.image_NE, y.image_NE)
        np.testing.assert_array_equal(x.text_ME, y.text_ME)
    for field in fields(Batch):
        if field.name not in ("wait_s", "read_targets_s", "targets"):
            x, y = getattr(a, field.name), getattr(b, field.name)
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=field.name)


def teacher_sees(pixels_N: torch.Tensor) -> NDArray[np.float32]:
    """What the fake teacher makes of pixels."""
    return FakeTeacher().embed_images(pixels_N.numpy())()


def rows_that_meet(batch: Batch, pixels_N: torch.Tensor) -> NDArray[np.bool_]:
    """(N,) whether each target is what the teacher makes of these pixels."""
    return np.abs(teacher_sees(pixels_N) - batch.targets[0].image_NE.numpy()).max(1) < TOLERANCE


# -- a target meets its pixels


@pytest.mark.parametrize("views_per_step", [1, 2, NUM_VIEWS])
def test_every_view_has_the_target_of_just_its_pixels(
    small: Made, tiny_checkpoint: Path, views_per_step: int
) -> None:
    batches = batches_of(small, tiny_checkpoint, 0, 12, views_per_step=views_per_step)
    for batch in batches:
        assert rows_that_meet(batch, batch.pixels_N).all()
        # The test sees what it is meant to see: mirrored, or another image's, they do not meet.
        assert not rows_that_meet(batch, batch.pixels_N.flip(2)).any()
        assert not rows_that_meet(batch, batch.pixels_N.roll(views_per_step, 0)).any()
    seen = {(p, v) for b in batches for p, v in zip(b.positions_N, b.views_N, strict=True)}
    flips = small.cache.table("views").select("flip").collect()["flip"]
    assert 0 < flips.sum() < len(flips)
    assert len({view for _, view in seen}) == NUM_VIEWS


def test_flips_or_crops_that_are_mixed_up_do_not_meet_their_targets(
    small: Made, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ("row", "view", "top", "left", "height", "width", "flip")
    views = small.cache.table("views").select(columns).collect()
    boxes = {(row, view): ViewBox(*box) for row, view, *box in views.iter_rows()}

    def not_mirrored(values: Sequence[Any]) -> ViewBox:
        return ViewBox(*values[:4])

    def turned(values: Sequence[Any]) -> ViewBox:
        top, left, height, width, flip = values
        return ViewBox(left, top, width, height, flip)

    for wrong in (not_mirrored, turned):
        monkeypatch.setattr(catalog_index, "view_box", wrong)
        num_wrong = 0
        for batch in batches_of(small, tiny_checkpoint, 0, 4):
            is_right: list[bool] = []
            for row, view in zip(rows_of(small, batch), batch.views_N, strict=True):
                size = (96, 64) if row % 5 else (40, 100)
                box = boxes[row, int(view)]
                used = wrong((box.top, box.left, box.height, box.width, box.flip))
                same_crop = pixel_box(used, *size) == pixel_box(box, *size)
                is_right.append(same_crop and used.flip == box.flip)
            assert rows_that_meet(batch, batch.pixels_N).tolist() == is_right
            num_wrong += is_right.count(False)
        assert num_wrong > 10


def test_augmented_views_are_replayed_from_the_corpus_and_from_kept_pixels(
    small: Made, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(PRESETS["strong"], jitter=1.0)
    settings = {"augmentation": policy, "keep_pixels": 32}
    of = made(small.folder, tmp_path / "cache", tiny_checkpoint, **settings)
    for batch in batches_of(of, tiny_checkpoint, 0, 4, views_per_step=2):
        assert rows_that_meet(batch, batch.pixels_N).all()
    kept = ImageLookup(of.cache, of.corpus, of.cache.kept_pixels())
    everywhere = np.arange(3), np.tile(np.arange(NUM_VIEWS), (3, 1))
    boxes = [ref.boxes for ref in ImageLookup(of.cache, of.corpus).refs(*everywhere)]
    assert [ref.boxes for ref in kept.refs(*everywhere)] == boxes
    assert boxes == [ref.boxes for ref in image_refs(of.cache, of.corpus.rows_N[:3].tolist())]
    assert all(own[0] == WHOLE_IMAGE for own in boxes)

    # The test sees what it is meant to see: without the operations only whole images meet.
    monkeypatch.setattr(catalog_index, "view_box", lambda values: ViewBox(*values[:5]))
    for batch in batches_of(of, tiny_checkpoint, 0, 4, views_per_step=2):
        assert rows_that_meet(batch, batch.pixels_N).tolist() == (batch.views_N == 0).tolist()


def test_pixels_are_made_as_the_students_own_processor_makes_them(
    small: Made, tiny_checkpoint: Path
) -> None:
    recipe = resolve_checkpoint(str(tiny_checkpoint)).image
    (batch,) = batches_of(small, tiny_checkpoint, 0, 1, views_per_step=NUM_VIEWS)
    whole = np.flatnonzero(batch.views_N == 0)
    assert len(whole) == 3
    for i in whole:
        image = Image.open(small.folder / f"img{rows_of(small, batch)[i]:03d}.png").convert("RGB")
        expected = image.resize(recipe.size[::-1], recipe.resample)
        np.testing.assert_array_equal(batch.pixels_N[i].numpy(), np.asarray(expected))


def test_a_naflex_student_gets_patches_that_keep_the_aspect_of_the_crop(
    small: Made, naflex_checkpoint: Path, tmp_path: Path
) -> None:
    student = with_max_num_patches(resolve_checkpoint(str(naflex_checkpoint)), 16)
    teacher = FakeNaflexTeacher(recipe=student.image)
    of = made(small.folder, tmp_path / "cache", naflex_checkpoint, teacher, max_num_patches=16)
    grids: set[tuple[int, int]] = set()
    for batch in batches_of(of, student, 0, 4, views_per_step=2):
        assert batch.grids_N2 is not None
        assert batch.pixels_N.shape == (12, *student.image.view_shape)
        seen = teacher.embed_patches(batch.pixels_N.numpy(), batch.grids_N2)()
        np.testing.assert_allclose(seen, batch.targets[0].image_NE.numpy(), atol=TOLERANCE)
        grids |= set(map(tuple, batch.grids_N2.tolist()))
    assert len(grids) > 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_for_a_gpu_are_pinned_but_for_their_pixels(
    small: Made, tiny_checkpoint: Path
) -> None:
    with loader_of(small, tiny_checkpoint, device="cuda") as loader:
        batch = next(loader.batches())
    [targets] = batch.targets
    for name, rows in (
        ("ids", batch.ids_ML),
        ("image", targets.image_NE),
        ("text", targets.text_ME),
    ):
        assert rows.is_pinned(), name
    assert not batch.pixels_N.is_pinned()
    (same,) = batches_of(small, tiny_checkpoint, 0, 1)
    assert_same(batch, same)


def test_scaled_decoding_of_large_jpegs_gives_nearly_the_same_pixels(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = write_folder_corpus(tmp_path / "corpus", 8, captions=1)
    for i, path in enumerate(sorted(folder.glob("*.png"))):
        path.unlink()
        draw_image(i).resize((640, 480)).save(path.with_suffix(".jpg"), quality=95)
    of = made(folder, tmp_path / "cache", tiny_checkpoint)
    (exact,), (scaled,) = (
        batches_of(of, tiny_checkpoint, 0, 1, global_batch_size=4, config={"decode": decode})
        for decode in ("exact", "scaled")
    )
    difference = (exact.pixels_N.short() - scaled.pixels_N.short()).abs()
    assert 0 < difference.max() <= 16
    assert difference.float().mean() < 1


# -- texts


def test_texts_have_their_targets_and_their_ids(small: Made, tiny_checkpoint: Path) -> None:
    texts = dict(small.cache.texts().collect().iter_rows())
    tokenizer = TextTokenizer(resolve_checkpoint(str(tiny_checkpoint)))
    for batch in batches_of(small, tiny_checkpoint, 0, 4):
        named = [texts[row] for row in batch.text_rows_M.tolist()]
        expected = FakeTeacher().embed_texts(named)()
        np.testing.assert_allclose(batch.targets[0].text_ME.numpy(), expected, atol=TOLERANCE)
        assert batch.ids_ML is not None
        np.testing.assert_array_equal(batch.ids_ML.numpy(), tokenizer(named))
        assert_own_captions(small, batch)


def test_a_training_of_images_alone_gets_no_token_ids(small: Made, tiny_checkpoint: Path) -> None:
    (batch,) = batches_of(small, tiny_checkpoint, 0, 1, towers="image")
    assert batch.ids_ML is None
    assert len(batch.targets[0].text_ME) == len(batch.text_rows_M) > 0


def test_the_slices_of_all_ranks_make_the_batch_of_one(small: Made, tiny_checkpoint: Path) -> None:
    (whole,) = batches_of(small, tiny_checkpoint, 1, 2)
    parts = [
        batches_of(small, tiny_checkpoint, 1, 2, rank=rank, world_size=3)[0] for rank in range(3)
    ]
    targets = np.concatenate([part.targets[0].image_NE for part in parts])
    np.testing.assert_array_equal(targets, whole.targets[0].image_NE)
    for name in ("positions_N", "views_N", "pixels_N", "caption_NC", "ids_ML"):
        joined = np.concatenate([np.asarray(getattr(part, name)) for part in parts])
        np.testing.assert_array_equal(joined, np.asarray(getattr(whole, name)), err_msg=name)
    for part in parts:
        np.testing.assert_array_equal(part.text_rows_M, whole.text_rows_M)
        np.testing.assert_array_equal(part.targets[0].text_ME, whole.targets[0].text_ME)


# -- the same whoever makes it


def test_workers_and_where_one_begins_change_nothing(small: Made, tiny_checkpoint: Path) -> None:
    through = batches_of(small, tiny_checkpoint, 0, 5, views_per_step=2)
    assert [batch.step for batch in through] == list(range(5))
    assert [batch.epoch for batch in through] == [0, 0, 0, 0, 1]
    by_workers = batches_of(
        small, tiny_checkpoint, 2, 5, views_per_step=2, config={"num_workers": 2}
    )
    for a, b in zip(by_workers, through[2:], strict=True):
        assert_same(a, b)


def test_a_batch_of_many_pieces_is_put_together_in_order(
    small: Made, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches_of(small, tiny_checkpoint, 0, 2, views_per_step=2, world_size=2)
    monkeypatch.setattr("siglip2_cache.student.data.loader._PIECE_VIEWS", 4)
    found = batches_of(small, tiny_checkpoint, 0, 2, views_per_step=2, world_size=2)
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)


# -- files that changed


def skipped_of(batches: list[Batch]) -> dict[str, str]:
    return {key: reason for batch in batches for key, reason in batch.skipped}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_changed_and_lost_files_are_left_out_by_name(
    moved: Made, tiny_checkpoint: Path, num_workers: int
) -> None:
    draw_image(99).save(moved.folder / "img013.png")
    (moved.folder / "img014.png").unlink()
    (moved.folder / "img017.png").write_bytes(b"no picture")
    config = {"num_workers": num_workers}
    batches = batches_of(moved, tiny_checkpoint, 0, 8, views_per_step=2, config=config)
    skipped = skipped_of(batches)
    assert set(skipped) == {"img013", "img014", "img017"}
    assert skipped["img013"].startswith("its bytes are not those the teacher saw; ")
    assert skipped["img014"] == "no such file"
    left_out = {13, 14, 17}
    for batch in batches:
        assert len(batch.positions_N) == 12 - 2 * len(batch.skipped) == len(batch.pixels_N)
        assert not left_out & set(rows_of(moved, batch))
        assert rows_that_meet(batch, batch.pixels_N).all()
        assert_own_captions(moved, batch)
    whole = batches_of(replace(moved, cache=open_cache(moved.cache.root)), tiny_checkpoint, 0, 4)
    assert not skipped_of(whole)


def test_texts_of_images_left_out_stay_for_the_other_ranks(
    moved: Made, tiny_checkpoint: Path
) -> None:
    (whole,) = batches_of(moved, tiny_checkpoint, 0, 1)
    row = moved.corpus.rows_N[whole.positions_N[whole.caption_NC[:, 0] >= 0][0]]
    (moved.folder / f"img{row:03d}.png").unlink()
    (batch,) = batches_of(moved, tiny_checkpoint, 0, 1)
    assert len(batch.skipped) == 1
    np.testing.assert_array_equal(batch.text_rows_M, whole.text_rows_M)
    assert len(batch.positions_N) == 11


def test_pixels_are_checked_as_often_as_was_said(moved: Made, tiny_checkpoint: Path) -> None:
    draw_image(99).save(moved.folder / "img013.png")
    per_epoch = 2  # of 26 images, 13 a step
    found = {
        check: [
            bool(skipped_of(batches_of(
                moved, tiny_checkpoint, e * per_epoch, (e + 1) * per_epoch,
                global_batch_size=13, config={"check_pixels": check},
            )))
            for e in (0, 1)
        ]
        for check in ("always", "first-epoch", "never")
    }  # fmt: skip
    assert found == {"always": [True] * 2, "first-epoch": [True, False], "never": [False] * 2}


@pytest.mark.parametrize("towers", ["both", "image"])
def test_a_batch_without_a_usable_image_is_empty_and_names_all_of_them(
    moved: Made, tiny_checkpoint: Path, towers: str
) -> None:
    (whole,) = batches_of(moved, tiny_checkpoint, 2, 3, towers=towers)
    shutil.rmtree(moved.folder)
    (batch,) = batches_of(moved, tiny_checkpoint, 2, 3, towers=towers)
    assert len(batch.skipped) == 12
    assert {reason for _, reason in batch.skipped} == {"no such file"}
    assert_empty(batch)
    np.testing.assert_array_equal(batch.text_rows_M, whole.text_rows_M)
    torch.testing.assert_close(batch.ids_ML, whole.ids_ML)


def test_an_empty_naflex_batch_has_grids_of_no_image(
    moved: Made, naflex_checkpoint: Path, tmp_path: Path
) -> None:
    student = with_max_num_patches(resolve_checkpoint(str(naflex_checkpoint)), 16)
    teacher = FakeNaflexTeacher(recipe=student.image)
    of = made(moved.folder, tmp_path / "cache", naflex_checkpoint, teacher, max_num_patches=16)
    shutil.rmtree(moved.folder)
    (batch,) = batches_of(of, student, 0, 1)
    assert_empty(batch)
    assert batch.grids_N2 is not None
    assert batch.grids_N2.shape == (0, 2)


def assert_empty(batch: Batch) -> None:
    lengths = (batch.positions_N, batch.views_N, batch.pixels_N, batch.caption_NC)
    assert [len(each) for each in (*lengths, batch.targets[0].image_NE)] == [0] * 5


def test_a_catalog_without_an_image_is_damaged(small: Made) -> None:
    strange = replace(small.corpus, rows_N=small.corpus.rows_N + 1)
    with pytest.raises(DamagedCacheError, match="has 25 of 26 images that have a target"):
        ImageLookup(small.cache, strange)


# -- Parquet


def test_each_row_group_is_decoded_once_an_epoch(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder_corpus(tmp_path / "drawn", 52, captions=0)
    images = [path.read_bytes() for path in sorted(folder.glob("*.png"))]
    (tmp_path / "corpus").mkdir()
    for i in range(2):
        part = pa.table({"image": images[26 * i : 26 * i + 26], "caption": ["c"] * 26})
        pq.write_table(part, tmp_path / f"corpus/{i}.parquet", row_group_size=2)
    of = made(tmp_path / "corpus", tmp_path / "cache", tiny_checkpoint)
    started: list[int] = []
    real = parquet_images.leaf_batches

    def counting(file: Any, member: str, row_group: int, **more: Any) -> Iterator[Any]:
        started.append(row_group)
        return real(file, member, row_group, **more)

    monkeypatch.setattr(parquet_images, "leaf_batches", counting)
    epoch = batches_of(of, tiny_checkpoint, 0, 4)
    assert len(started) == 24
    positions = np.concatenate([batch.positions_N for batch in epoch])
    assert sorted(positions.tolist()) == list(range(48))
    assert (np.diff(positions) < 0).any()
    for batch in epoch:
        assert rows_that_meet(batch, batch.pixels_N).all()
    started.clear()
    scattered = batches_of(of, tiny_checkpoint, 0, 4, groups=None)
    assert len(started) > 30
    assert sum(len(batch.positions_N) for batch in scattered) == 48


# -- tars


@pytest.fixture(scope="module")
def tarred(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Three tars of 60 images each; read it, do not change it."""
    root = tmp_path_factory.mktemp("tarred")
    folder = write_folder_corpus(root / "drawn", 180, captions=1)
    (root / "corpus").mkdir()
    for i in range(3):
        with tarfile.open(root / f"corpus/{i}.tar", "w") as tar:
            for path in sorted(folder.iterdir())[120 * i : 120 * i + 120]:
                tar.add(path, path.name)
    return made(root / "corpus", root / "cache", tiny_checkpoint)


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_from_tars_in_a_store_makes_a_tenth_of_a_request_an_image(
    tarred: Made, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    monkeypatch.setattr(catalog_index, "_PART_BYTES", 64 << 10)  # of tars of 150 kB
    monkeypatch.setattr(catalog_index, "_OPEN_PARTS", 4)
    with memory_bucket() as bucket:
        roots = {str(tarred.folder): bucket.put_folder(tarred.folder)}
        of = replace(tarred, cache=open_cache(tarred.cache.root, corpus_roots=roots))
        for rank in range(world_size):
            settings = {"rank": rank, "world_size": world_size, "global_batch_size": 16}
            found = batches_of(of, tiny_checkpoint, 0, 11, **settings)
            here = batches_of(tarred, tiny_checkpoint, 0, 11, **settings)
            for batch, expected in zip(found, here, strict=True):
                assert not batch.skipped
                assert_same(batch, expected)
        assert 9 <= bucket.requests.total() <= 16 * 11 / 10
        [later] = batches_of(of, tiny_checkpoint, 7, 8, **settings)
    assert_same(later, found[7])


def test_what_is_wrong_with_a_tar_in_a_store_is_named_for_each_of_its_images(
    tarred: Made, tiny_checkpoint: Path
) -> None:
    with memory_bucket() as bucket:
        roots = {str(tarred.folder): bucket.put_folder(tarred.folder)}
        of = replace(tarred, cache=open_cache(tarred.cache.root, corpus_roots=roots))
        bucket.remove("0.tar")
        data = (tarred.folder / "1.tar").read_bytes()
        bucket.put("1.tar", bytes(1024) + data)
        skipped = skipped_of(batches_of(of, tiny_checkpoint, 0, 11, global_batch_size=16))
    reasons = [reason.partition(":")[0] for reason in skipped.values()]
    assert set(reasons) == {"no such file", "the archive changed since it was planned"}
    assert all(50 < reasons.count(reason) <= 60 for reason in set(reasons))


# -- starting and ending


def helpers() -> tuple[set[str], set[int]]:
    """Names of the threads of loading, and decoding processes."""
    threads = {thread.name for thread in threading.enumerate()}
    children = psutil.Process().children(recursive=True)
    workers: set[int] = set()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.ppid() != psutil.Process().pid and child.status() != psutil.STATUS_ZOMBIE:
                workers.add(child.pid)
    return threads & {"train-batches", "parquet-images"}, workers


@pytest.mark.parametrize("ending", ["break", "close", "error"])
def test_nothing_is_left_running(small: Made, tiny_checkpoint: Path, ending: str) -> None:
    loader = loader_of(small, tiny_checkpoint, config={"num_workers": 2})
    batches = loader.batches()
    next(batches)
    threads, workers = helpers()
    assert threads == {"train-batches"}
    assert len(workers) == 2
    if ending == "break":
        batches.close()
    elif ending == "close":
        loader.close()
        assert next(batches, None) is None
    else:
        with pytest.raises(RuntimeError, match="loss"), loader:
            raise RuntimeError("loss")
    assert helpers() == (set(), set())


def test_no_more_than_a_few_batches_are_made_ahead(
    small: Made, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_steps: list[int] = []
    real = Sampler.global_batch

    def spy(self: Sampler, step: int) -> Any:
        made_steps.append(step)
        return real(self, step)

    monkeypatch.setattr(Sampler, "global_batch", spy)
    with loader_of(small, tiny_checkpoint, config={"prefetch": 1}) as loader:
        batches = loader.batches()
        first = next(batches)
        deadline = threading.Event()
        deadline.wait(0.5)
        assert first.step == 0
        assert made_steps == [0, 1, 2]  # taken, waiting, made and not handed over
        batches.close()


def test_what_goes_wrong_in_the_thread_is_raised_where_the_batch_is_wanted(
    small: Made, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Sampler.global_batch

    def broken(self: Sampler, step: int) -> Any:
        if step == 2:
            raise OSError("the disk is gone")
        return real(self, step)

    monkeypatch.setattr(Sampler, "global_batch", broken)
    seen: list[int] = []
    with (
        loader_of(small, tiny_checkpoint) as loader,
        pytest.raises(OSError, match="the disk is gone"),
    ):
        seen += [batch.step for batch in loader.batches()]
    assert helpers()[0] == set()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_workers": -1}, "decode_workers must be 0 to 1024, got -1"),
        (
            {"check_pixels": "often"},
            "check_pixels 'often' is not one of always, first-epoch, never",
        ),
        ({"decode": "fast"}, "decode 'fast' is not one of exact, scaled"),
        ({"prefetch": 0}, "prefetch must be at least 1, got 0"),
        ({"sample_timeout_s": 0}, "sample_timeout must be above 0, got 0"),
    ],
)
def test_settings_that_are_none_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        LoaderConfig(**config)
