"""``build --keep-pixels``: accepted images again, small, in tars beside the targets; training from them."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kit.fakes import (
    FakeTeacher,
    SilentProgress,
    config_of,
    draw_image,
    tree_of,
    write_folder_corpus,
)
from kit.memory_bucket import memory_bucket
from PIL import Image

from siglip2_cache import open_cache
from siglip2_cache.errors import BuildError, SettingError
from siglip2_cache.images.image_bytes import ImageLocation, read_image_bytes
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.config import BuildSummary
from siglip2_cache.precompute.executor.messages import BuildInterrupted
from siglip2_cache.precompute.ranks import ProcessRank
from siglip2_cache.progress import Display
from siglip2_cache.siglip import resolve_checkpoint
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.io.location import Location, parse_location
from siglip2_cache.store.verify.verify import verify_cache
from siglip2_cache.student.config_file import make_config
from siglip2_cache.student.data.catalog_index import ImageLookup
from siglip2_cache.student.data.kept_pixels import choose_pixels
from siglip2_cache.student.data.read_corpus import read_corpus
from siglip2_cache.student.evaluation.compare import EvalConfig
from siglip2_cache.student.runtimes import from_run
from siglip2_cache.student.runtimes.export import RuntimesConfig
from siglip2_cache.student.runtimes.held_out import read_held_out
from siglip2_cache.student.training.export_checkpoint import ExportCheckpointConfig
from siglip2_cache.student.training.progress import TrainProgress
from siglip2_cache.student.training.trainer import train

NUM_IMAGES, SHORT_SIDE = 14, 64

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """14 images of 160 x 96, but for one of 24 x 16 and one that is no image."""
    folder = write_folder_corpus(tmp_path / "corpus", NUM_IMAGES, captions=2)
    for i in range(NUM_IMAGES):
        if i != 3:
            picture(i).save(folder / f"img{i:03d}.png")
    (folder / "img007.png").write_bytes(b"text")
    return folder


def picture(number: int) -> Image.Image:
    """A smooth image, which a JPEG keeps well."""
    return draw_image(number, (16, 12)).resize((160, 96), Image.Resampling.BICUBIC)


def no_teacher(*_: object) -> FakeTeacher:
    raise AssertionError("the teacher is not needed")


def build_in(
    corpus: Path,
    cache: Location,
    teacher: Path,
    *,
    make_teacher: Any = lambda *_: FakeTeacher(),
    progress: SilentProgress | None = None,
    **settings: Any,
) -> BuildSummary:
    config = config_of(corpus, cache, teacher, shard_rows=4, **settings)
    return build(config, progress=progress or SilentProgress(), make_teacher=make_teacher)


def members(cache: Path, unit: int) -> dict[str, bytes]:
    with tarfile.open(cache / layout.pixels_tar(unit)) as tar:
        found = {each.name: tar.extractfile(each) for each in tar}
        return {name: file.read() for name, file in found.items() if file is not None}


def assert_kept(cache: Cache, rows: list[int]) -> None:
    """These rows and no others are kept, where the tables say, and nothing is at fault."""
    assert verify_cache(cache).faults == []
    kept = cache.kept_pixels()
    assert kept is not None
    found: list[int] = []
    for unit in sorted(kept.units):
        data = cache.files.read(layout.pixels_tar(unit))
        for line in kept.index(unit).iter_rows(named=True):
            image = Image.open(io.BytesIO(data[line["offset"] :][: line["length"]]))
            assert image.size == (line["width"], line["height"])
            found.append(line["row"])
    assert found == rows


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_build_keeps_each_accepted_image_in_ordinary_tars(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path, num_workers: int
) -> None:
    cache = tmp_path / "cache"
    summary = build_in(
        corpus, cache, tiny_checkpoint, keep_pixels=SHORT_SIDE, decode_workers=num_workers
    )
    assert (summary.num_kept, summary.num_kept_now) == (13, 13)
    opened = open_cache(cache)
    assert_kept(opened, [row for row in range(NUM_IMAGES) if row != 7])
    found = members(cache, 0)
    assert list(found) == [f"{row:012d}.jpg" for row in range(4)]
    for name, data in found.items():
        row = int(name[:12])
        image = Image.open(io.BytesIO(data))
        assert image.size == ((107, 64) if row != 3 else (24, 16))
        if row != 3:
            expected = picture(row).resize((107, 64), Image.Resampling.LANCZOS)
            assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 3
    kept = opened.kept_pixels()
    assert kept is not None
    assert dict(kept.units[1].rejected) == dict(opened.commits().units["image", 1].rejected)
    seen = opened.seen("tiny", 0).select("row", "sha256")
    assert kept.index(0).select("row", sha256="source_sha256").equals(seen)
    images = ImageLookup(opened, read_corpus(opened, None, None), kept)
    refs = images.refs(np.array([2, 3]), np.zeros((2, 1), np.int64))
    assert [ref.full for ref in refs] == [
        (160, 96),
        (24, 16),
    ]  # crops are cut where they are in these


def test_a_finished_cache_gets_pixels_without_the_teacher_equal_to_those_of_one_build(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    build_in(corpus, tmp_path / "one", tiny_checkpoint, keep_pixels=SHORT_SIDE)
    build_in(corpus, tmp_path / "two", tiny_checkpoint)
    before = tree_of(tmp_path / "two")
    build_in(
        corpus, tmp_path / "two", tiny_checkpoint, keep_pixels=SHORT_SIDE, make_teacher=no_teacher
    )
    after = tree_of(tmp_path / "two")
    assert after == tree_of(tmp_path / "one")
    assert {path: after[path] for path in before} == before
    again = build_in(corpus, tmp_path / "two", tiny_checkpoint, make_teacher=no_teacher)
    assert (again.num_kept, again.num_kept_now) == (13, 0)
    assert tree_of(tmp_path / "two") == after


def test_a_build_that_also_embeds_reads_each_image_once(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def note(location: ImageLocation) -> bytes:
        read.append(Path(str(location.path)).name)
        return read_image_bytes(location)

    monkeypatch.setattr("siglip2_cache.images.image.read_image_bytes", note)
    settings = {"keep_pixels": SHORT_SIDE, "decode_workers": 0}
    build_in(corpus, tmp_path / "cache", tiny_checkpoint, **settings)
    assert sorted(read) == [f"img{row:03d}.png" for row in range(NUM_IMAGES)]
    # Of another teacher's build nothing is kept again.
    before = tree_of(tmp_path / "cache" / "pixels")
    build_in(corpus, tmp_path / "cache", tiny_checkpoint, teacher_name="b", decode="scaled")
    assert tree_of(tmp_path / "cache" / "pixels") == before


def test_a_build_that_is_stopped_as_it_embeds_keeps_whole_units_and_resumes(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    class Stopping(FakeTeacher):
        def embed_images(self, pixels_BHWC: Any) -> Any:
            if len(self.image_batches) == 3:  # of four units
                raise KeyboardInterrupt
            return super().embed_images(pixels_BHWC)

    cache, settings = tmp_path / "cache", {"keep_pixels": SHORT_SIDE, "batch_size": 2}
    with pytest.raises(KeyboardInterrupt):
        build_in(corpus, cache, tiny_checkpoint, make_teacher=lambda *_: Stopping(), **settings)
    assert not [path for path in tree_of(cache) if layout.is_garbage_name(path)]
    build_in(corpus, cache, tiny_checkpoint, **settings)
    build_in(corpus, tmp_path / "whole", tiny_checkpoint, **settings)
    assert tree_of(cache) == tree_of(tmp_path / "whole")


def test_new_images_and_images_that_can_be_read_at_last_are_kept_too(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    build_in(corpus, cache, tiny_checkpoint, keep_pixels=SHORT_SIDE)
    write_folder_corpus(corpus, 2, first=NUM_IMAGES)
    assert build_in(corpus, cache, tiny_checkpoint).num_kept_now == 2
    picture(7).save(corpus / "img007.png")
    settings = {"retry_rejected": True, "changed": "skip"}
    assert build_in(corpus, cache, tiny_checkpoint, **settings).num_kept_now == 1
    assert_kept(open_cache(cache), [*range(NUM_IMAGES), 16, 17])


def test_an_image_that_changed_since_is_not_kept_until_it_is_restored(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    build_in(corpus, cache, tiny_checkpoint)
    good = (corpus / "img005.png").read_bytes()
    picture(99).save(corpus / "img005.png")
    build_in(corpus, cache, tiny_checkpoint, keep_pixels=SHORT_SIDE, changed="skip")
    kept = open_cache(cache).kept_pixels()
    assert kept is not None
    assert kept.units[1].rejected[5] == "its bytes are not those the teacher saw"
    (corpus / "img005.png").write_bytes(good)
    build_in(corpus, cache, tiny_checkpoint, retry_rejected=True, changed="skip")
    assert_kept(open_cache(cache), [row for row in range(NUM_IMAGES) if row != 7])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_new_attempt_takes_over_the_images_whose_files_are_gone(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path, num_workers: int
) -> None:
    cache = tmp_path / "cache"
    build_in(corpus, cache, tiny_checkpoint, keep_pixels=SHORT_SIDE)
    before = members(cache, 1)
    picture(7).save(corpus / "img007.png")
    build_in(corpus, tmp_path / "once", tiny_checkpoint, keep_pixels=SHORT_SIDE)
    for gone in (4, 5):
        (corpus / f"img{gone:03d}.png").unlink()
    picture(99).save(corpus / "img006.png")  # of other bytes than the teacher saw
    settings: dict[str, Any] = {"retry_rejected": True, "changed": "skip"}
    summary = build_in(corpus, cache, tiny_checkpoint, decode_workers=num_workers, **settings)
    assert (summary.num_kept, summary.num_kept_now) == (14, 1)
    assert before.items() < members(cache, 1).items()
    assert_kept(open_cache(cache), list(range(NUM_IMAGES)))
    for path in (layout.pixels_tar(1), layout.pixels_index(1)):
        assert (cache / path).read_bytes() == (tmp_path / "once" / path).read_bytes()


def test_an_image_that_a_later_teacher_rejects_stays_with_the_bytes_that_were_kept(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    build_in(corpus, cache, tiny_checkpoint, keep_pixels=SHORT_SIDE)
    before = members(cache, 1)
    picture(7).save(corpus / "img007.png")
    (corpus / "img004.png").unlink()
    settings: dict[str, Any] = {"retry_rejected": True, "changed": "skip", "teacher_name": "b"}
    build_in(corpus, cache, tiny_checkpoint, decode="scaled", **settings)
    assert 4 in open_cache(cache).commits("b").units["image", 1].rejected
    after = members(cache, 1)
    assert before.items() < after.items()
    assert list(after) == [f"{row:012d}.jpg" for row in range(4, 8)]


def test_other_settings_are_refused_with_both_values(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    cache = tmp_path / "cache"
    progress = SilentProgress()
    build_in(
        corpus, cache, tiny_checkpoint, keep_pixels=SHORT_SIDE, keep_quality=80, progress=progress
    )
    before = tree_of(cache)
    message = r"--keep-pixels 64 --keep-quality 80, now they are 96 and 80; leave the options out"
    with pytest.raises(SettingError, match=message):
        build_in(corpus, cache, tiny_checkpoint, keep_pixels=96)
    for options, expected in (
        (("--keep-pixels", 16), "error: --keep-pixels must be 32 to 4096, got 16\n"),
        (("--keep-quality", 10), "error: --keep-quality must be 50 to 100, got 10\n"),
        (("--keep-quality", 90), "error: --keep-quality 90 goes with --keep-pixels\n"),
    ):
        words = ("build", corpus, tmp_path / "new", "--teacher", tiny_checkpoint, *options)
        assert command(*words) == (1, "", expected)
    assert tree_of(cache) == before


def test_pixels_smaller_than_the_teachers_are_kept_with_a_warning(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siglip2_cache.precompute.keep_pixels.view_pixels", lambda _: 384)
    progress = SilentProgress()
    build_in(corpus, tmp_path / "cache", tiny_checkpoint, keep_pixels=288, progress=progress)
    assert (
        "warning: --keep-pixels 288 is below the 384 px that the teacher sees; train students of at most "
        "288 px from these pixels"
    ) in progress.said


def test_ranks_keep_the_pixels_of_their_units_and_finish_says_what_is_missing(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cache, settings = tmp_path / "cache", {"keep_pixels": SHORT_SIDE}
    build_in(corpus, cache, tiny_checkpoint)
    rank = ProcessRank(rank=0, world_size=2, local_rank=None)
    build_in(corpus, cache, tiny_checkpoint, rank=rank, **settings)
    with pytest.raises(BuildError, match=r"the pixels of 2 units are not kept \(first: 1\); run"):
        build_in(corpus, cache, tiny_checkpoint, finish=True)
    missing = "pixels: 2 image units are not kept yet (first: 1); run the same build again"
    assert verify_cache(open_cache(cache)).faults == [missing]
    build_in(corpus, cache, tiny_checkpoint, rank=replace(rank, rank=1), **settings)
    assert build_in(corpus, cache, tiny_checkpoint, finish=True).num_kept == 13
    build_in(corpus, tmp_path / "one", tiny_checkpoint, **settings)
    assert tree_of(cache) == tree_of(tmp_path / "one")


def test_an_interrupted_build_keeps_whole_units_and_resumes(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    import signal

    class Interrupting(SilentProgress):
        def show(self, task: Any, line: str) -> None:
            if task.done == 7:  # of unit 1, too
                signal.raise_signal(signal.SIGINT)

    cache = tmp_path / "cache"
    build_in(corpus, cache, tiny_checkpoint)
    with pytest.raises(BuildInterrupted):
        build_in(corpus, cache, tiny_checkpoint, keep_pixels=SHORT_SIDE, progress=Interrupting())
    kept = open_cache(cache).kept_pixels()
    assert kept is not None
    assert sorted(kept.units) == [0, 1]
    assert not [path for path in tree_of(cache) if layout.is_garbage_name(path)]
    build_in(corpus, cache, tiny_checkpoint, make_teacher=no_teacher)
    assert_kept(open_cache(cache), [row for row in range(NUM_IMAGES) if row != 7])


def test_a_store_holds_the_same_objects_as_a_folder(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with memory_bucket() as bucket:
        url = parse_location(f"{bucket.url}/cache")
        build_in(corpus, url, tiny_checkpoint, keep_pixels=SHORT_SIDE)
        remote = open_cache(url)
        assert_kept(remote, [row for row in range(NUM_IMAGES) if row != 7])
        build_in(corpus, tmp_path / "cache", tiny_checkpoint, keep_pixels=SHORT_SIDE)
        local = {
            path: data for path, data in tree_of(tmp_path / "cache").items() if "pixels/" in path
        }
        assert {path: remote.files.read(path) for path in local} == local
        assert len(local) == 1 + 3 * 4


def test_a_new_attempt_in_a_store_takes_over_the_images_whose_files_are_gone(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with memory_bucket() as bucket:
        url = parse_location(f"{bucket.url}/cache")
        build_in(corpus, url, tiny_checkpoint, keep_pixels=SHORT_SIDE)
        picture(7).save(corpus / "img007.png")
        (corpus / "img004.png").unlink()
        build_in(corpus, url, tiny_checkpoint, retry_rejected=True, changed="skip")
        assert_kept(open_cache(url), list(range(NUM_IMAGES)))


# -- damage


def damaged(cache: Path, path: str, change: Callable[[bytes], bytes]) -> list[str]:
    (cache / path).write_bytes(change((cache / path).read_bytes()))
    return verify_cache(open_cache(cache)).faults


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.fixture
def kept_cache(corpus: Path, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    build_in(corpus, tmp_path / "cache", tiny_checkpoint, keep_pixels=SHORT_SIDE)
    return tmp_path / "cache"


@pytest.mark.parametrize("path", [layout.pixels_tar(1), layout.pixels_index(1)])
def test_a_flipped_bit_is_found_and_the_remedy_mends_it(
    kept_cache: Path, corpus: Path, tiny_checkpoint: Path, path: str
) -> None:
    before = (kept_cache / path).read_bytes()
    [fault] = damaged(kept_cache, path, flip)
    assert fault == (
        f"{path} is damaged: its bytes have changed; remove pixels/commits/image-00001.*json and run the "
        "same build again to keep the pixels of the unit again"
    )
    for record in kept_cache.glob("pixels/commits/image-00001.*json"):
        record.unlink()
    build_in(corpus, kept_cache, tiny_checkpoint, make_teacher=no_teacher)
    assert (kept_cache / path).read_bytes() == before
    assert verify_cache(open_cache(kept_cache)).faults == []


def test_a_damaged_record_costs_its_unit_and_a_damaged_setting_is_named(
    kept_cache: Path, corpus: Path, tiny_checkpoint: Path
) -> None:
    record = layout.pixels_unit_record(2)
    faults = damaged(kept_cache, record, lambda data: data[:50])
    assert any("not a complete record (50 bytes)" in fault for fault in faults)
    build_in(corpus, kept_cache, tiny_checkpoint, make_teacher=no_teacher)
    assert_kept(open_cache(kept_cache), [row for row in range(NUM_IMAGES) if row != 7])
    [fault] = damaged(kept_cache, layout.PIXELS_RECORD, flip)
    assert fault.startswith(str(kept_cache / layout.PIXELS_RECORD))
    assert "or remove the folder pixels to keep them anew" in fault
    (kept_cache / layout.PIXELS_RECORD).unlink()
    assert verify_cache(open_cache(kept_cache)).faults == [
        "pixels/pixels.json is missing, without which 13 files (first: pixels/00000.parquet) cannot be used; "
        "copy it from where the cache came from, and remove nothing"
    ]


def attempts_of(cache: Path, unit: int) -> int:
    return len(list(cache.glob(f"pixels/commits/image-{unit:05d}*.json")))


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_damaged_image_of_a_tar_is_kept_again_or_given_up_alone(
    kept_cache: Path, corpus: Path, tiny_checkpoint: Path, is_gone: bool
) -> None:
    before, path = members(kept_cache, 1), kept_cache / layout.pixels_tar(1)
    kept = open_cache(kept_cache).kept_pixels()
    assert kept is not None
    offset = kept.index(1).filter(row=5)["offset"].item() + 100
    data = path.read_bytes()
    path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
    picture(7).save(corpus / "img007.png")
    for gone in (4, *((5,) if is_gone else ())):
        (corpus / f"img{gone:03d}.png").unlink()
    build_in(corpus, kept_cache, tiny_checkpoint, retry_rejected=True, changed="skip")
    rows = [row for row in range(NUM_IMAGES) if row != 5 or not is_gone]
    assert_kept(open_cache(kept_cache), rows)
    after = members(kept_cache, 1)
    assert all(after[name] == before[name] for name in before if name in after)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_unit_whose_table_is_damaged_stays_if_images_would_be_lost(
    kept_cache: Path, corpus: Path, tiny_checkpoint: Path, is_there: bool
) -> None:
    index, tar = layout.pixels_index(1), kept_cache / layout.pixels_tar(1)
    good, before = (kept_cache / index).read_bytes(), tar.read_bytes()
    if is_there:
        (kept_cache / index).write_bytes(flip(good))
    else:
        (kept_cache / index).unlink()
    picture(7).save(corpus / "img007.png")
    (corpus / "img004.png").unlink()
    progress, settings = SilentProgress(), {"retry_rejected": True, "changed": "skip"}
    build_in(corpus, kept_cache, tiny_checkpoint, progress=progress, **settings)
    assert (
        f"warning: {index} is damaged; the pixels of image unit 1 stay as they are: made again they would "
        "lose 1 image (first: row 4: no such file); make these files readable, or restore "
        f"{index} from a copy, and run again with --retry-rejected"
    ) in progress.said
    assert (tar.read_bytes(), attempts_of(kept_cache, 1)) == (before, 1)
    assert not [path for path in tree_of(kept_cache) if layout.is_garbage_name(path)]
    (kept_cache / index).write_bytes(good)
    build_in(corpus, kept_cache, tiny_checkpoint, **settings)
    assert_kept(open_cache(kept_cache), list(range(NUM_IMAGES)))


@pytest.mark.parametrize("size", [None, 0, 600])
def test_a_tar_that_is_gone_or_cut_is_made_again_from_the_files_that_are_there(
    kept_cache: Path, corpus: Path, tiny_checkpoint: Path, size: int | None
) -> None:
    tar = kept_cache / layout.pixels_tar(1)
    if size is None:
        tar.unlink()
    else:
        tar.write_bytes(tar.read_bytes()[:size])
    picture(7).save(corpus / "img007.png")
    (corpus / "img004.png").unlink()
    build_in(corpus, kept_cache, tiny_checkpoint, retry_rejected=True, changed="skip")
    assert_kept(open_cache(kept_cache), [row for row in range(NUM_IMAGES) if row != 4])


def test_a_file_that_is_in_no_record_is_named(kept_cache: Path) -> None:
    (kept_cache / "pixels/00009.tar").write_bytes(b"?")
    [fault] = verify_cache(open_cache(kept_cache)).faults
    assert fault.startswith("pixels/00009.tar is in no record")


def test_info_and_a_dry_run_know_the_pixels(
    kept_cache: Path, corpus: Path, tiny_checkpoint: Path, command: Command
) -> None:
    status, out, _ = command("info", kept_cache)
    assert status == 0
    assert "pixels     kept: complete\n" in out
    assert "13 images (4 of 4 units), at most 64 px on the short side, JPEG of quality 90" in out
    found = json.loads(command("info", kept_cache, "--json")[1])["pixels"]
    files = [path for path in tree_of(kept_cache) if path.startswith("pixels/")]
    num_bytes = sum((kept_cache / p).stat().st_size for p in files if not p.endswith(".json"))
    assert (found["images"], found["num_bytes"]) == (13, num_bytes)
    write_folder_corpus(corpus, 2, first=NUM_IMAGES)
    words = ("build", corpus, kept_cache, "--teacher", tiny_checkpoint, "--dry-run")
    assert "about 6.0 kB of kept pixels" in command(*words)[1]


# -- training from them


class Listening(TrainProgress):
    def __init__(self) -> None:
        super().__init__(Display())
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def trainable(tiny_checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A cache of 24 images with kept pixels, and its corpus."""
    corpus = write_folder_corpus(tmp_path / "drawn", 24, captions=1)
    for i in range(24):
        picture(i).save(corpus / f"img{i:03d}.png")
    build_in(corpus, tmp_path / "cache", tiny_checkpoint, keep_pixels=SHORT_SIDE)
    return tmp_path / "cache", corpus


def train_of(cache: Path, student: Path, out: Path, **settings: Any) -> list[str]:
    given = {
        "cache": cache,
        "student": str(student),
        "out": out,
        "steps": 4,
        "global_batch_size": 8,
        "val_share": 0.25,
        "decode_workers": 0,
        "check_pixels": "always",
        "device": "cpu",
        **settings,
    }
    heard = Listening()
    summary = train(make_config(None, given), progress=heard)
    assert summary.num_skipped == 0
    return heard.said


@pytest.mark.usefixtures("one_thread")
def test_a_training_reads_kept_pixels_and_needs_no_corpus(
    trainable: tuple[Path, Path],
    tiny_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, corpus = trainable
    train_of(cache, tiny_student, tmp_path / "corpus-run", pixels="corpus")
    shutil.rmtree(corpus)
    said = train_of(cache, tiny_student, tmp_path / "kept")
    assert any(", from kept pixels, on cpu" in line for line in said)
    assert "pixels: kept" in (tmp_path / "kept" / "config.yaml").read_text()
    said = train_of(cache, tiny_student, tmp_path / "corpus-run", pixels="kept")
    assert said[1] == (
        "the rest of this epoch is drawn in another order, so some of its images are shown twice and others "
        "not; --pixels corpus keeps the order"
    )
    evaluations = [
        json.loads((tmp_path / run / "evaluation.json").read_text())
        for run in ("kept", "corpus-run")
    ]
    assert evaluations[0]["gallery"] == evaluations[1]["gallery"]
    assert evaluations[0]["before"] != evaluations[1]["before"]
    ours, theirs = (each["before"]["image_correlation"] for each in evaluations)
    assert ours == pytest.approx(theirs, abs=0.02)
    # An export for other runtimes is checked on the same pixels.
    checked: list[RuntimesConfig] = []
    monkeypatch.setattr(from_run, "export_runtimes", checked.append)
    config = RuntimesConfig(model="", out=tmp_path / "out", to=("onnx",))
    from_run.export_source(config, ExportCheckpointConfig(run=tmp_path / "kept", out=config.out))
    assert (checked[0].pixels, checked[0].teacher) == ("kept", "tiny")
    moved = shutil.copytree(cache, tmp_path / "moved")
    from_run.export_source(
        replace(config, check=str(cache)),
        ExportCheckpointConfig(run=tmp_path / "kept", out=config.out, cache=str(moved)),
    )
    assert [each.check for each in checked] == [str(cache), str(cache)]
    rows = EvalConfig(model="", cache=cache, pixels="kept", decode_workers=0)
    held_out = read_held_out(rows, resolve_checkpoint(str(tmp_path / "kept" / "model")))
    assert len(held_out.pixels_N) == evaluations[0]["gallery"]["images"]


@pytest.mark.usefixtures("one_thread")
def test_kept_pixels_that_do_not_do_are_refused_or_left_for_the_corpus(
    trainable: tuple[Path, Path],
    tiny_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, _ = trainable
    size = "siglip2_cache.student.data.kept_pixels.view_pixels"
    monkeypatch.setattr(size, lambda _: 224)
    message = (
        "keeps 64 px on the short side, below the 224 px of the student; keep them anew with "
        "--keep-pixels 224, or use --pixels corpus"
    )
    with pytest.raises(SettingError, match=message):
        train_of(cache, tiny_student, tmp_path / "a", pixels="kept")
    said = train_of(cache, tiny_student, tmp_path / "a")
    assert any(line.startswith("note: the corpus is read: ") and message in line for line in said)
    monkeypatch.setattr(size, lambda _: 32)
    (cache / layout.pixels_unit_record(3)).unlink()
    with pytest.raises(SettingError, match=r"the pixels of 1 units yet \(first: 3\); run the same"):
        train_of(cache, tiny_student, tmp_path / "b", pixels="kept")
    shutil.rmtree(cache / "pixels")
    with pytest.raises(
        SettingError, match="keeps none; run siglip2-cache build with --keep-pixels"
    ):
        train_of(cache, tiny_student, tmp_path / "b", pixels="kept")
    with pytest.raises(SettingError, match="pixels 'both' is not one of auto, corpus, kept"):
        train_of(cache, tiny_student, tmp_path / "b", pixels="both")


def test_the_corpus_is_read_where_some_images_could_not_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("siglip2_cache.student.data.kept_pixels.view_pixels", lambda _: 32)
    rejected = {3: "no such file", 12: "rejected by the teacher too"}
    commits = SimpleNamespace(rejected=lambda _: rejected.items())
    kept = SimpleNamespace(
        settings=SimpleNamespace(short_side=64), units={0: None}, commits=commits
    )
    cache: Any = SimpleNamespace(root="C", shard_rows=16, kept_pixels=lambda: kept)
    corpus: Any = SimpleNamespace(rows_N=np.arange(10))
    checkpoint: Any = SimpleNamespace(image=None)
    assert choose_pixels(cache, corpus, checkpoint, "auto") == (
        None,
        "the corpus is read: the pixels of 1 images could not be kept (first: row 3); run siglip2-cache "
        "build with --retry-rejected, or use --pixels kept to train without them",
    )
    assert choose_pixels(cache, corpus, checkpoint, "kept") == (kept, None)
    del rejected[3]
    assert choose_pixels(cache, corpus, checkpoint, "auto") == (kept, None)
