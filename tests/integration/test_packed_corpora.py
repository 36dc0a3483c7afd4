"""Builds from Parquet files with images and from folders that ``datasets`` saved; the teacher is a fake."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit import processes
from kit.fakes import FakeTeacher, SilentProgress, config_of, draw_image, tree_of
from kit.patience import PATIENCE_S
from numpy.typing import NDArray

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.build import BuildSummary, build
from siglip2_cache.precompute.dry_run import dry_run, dry_run_lines
from siglip2_cache.precompute.summary import summary_lines
from siglip2_cache.precompute.verify_live import verify_live
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.verify.verify import verify_cache

datasets.disable_progress_bars()

KIT = Path(__file__).parents[1] / "kit"
Write = Callable[[Path, Sequence[int]], Path]


def png_of(number: int) -> bytes:
    sink = io.BytesIO()
    draw_image(number).save(sink, "png")
    return sink.getvalue()


def dataset_of(numbers: Sequence[int]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png_of(i), "path": None} for i in numbers],
            "caption": [f"Picture {i - i % 3}" for i in numbers],
        },
        features=features,
    )


def write_file(path: Path, numbers: Sequence[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset_of(numbers).to_parquet(path, batch_size=3)
    return path


def write_parquet(root: Path, numbers: Sequence[int]) -> Path:
    """Three files of row groups of 3 rows, as a hub repository has them."""
    for i, part in enumerate(np.array_split(numbers, 3)):
        write_file(root / "data" / f"train-0000{i}-of-00003.parquet", part.tolist())
    return root


def write_saved(root: Path, numbers: Sequence[int]) -> Path:
    half = len(numbers) // 2
    splits = {"train": dataset_of(numbers[:half]), "test": dataset_of(numbers[half:])}
    shards = {"train": 2, "test": 1}
    datasets.DatasetDict(splits).save_to_disk(root, num_shards=shards)
    return root


def write_plain(root: Path, numbers: Sequence[int]) -> Path:
    root.mkdir()
    for i in numbers:
        (root / f"{i:03d}.png").write_bytes(png_of(i))
        (root / f"{i:03d}.txt").write_text(f"Picture {i - i % 3}")
    return root


def run(corpus: Path, cache: Path, checkpoint: Path, **settings: Any) -> tuple[BuildSummary, Cache]:
    settings = {"shard_rows": 8} | settings
    config = config_of(corpus, cache, checkpoint, **settings)
    made = build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    return made, open_cache(cache)


def images_of(cache: Cache) -> NDArray[np.float16]:
    units = cache.manifest.units("image")
    return np.concatenate([np.array(cache.image_targets().read_unit(u.number)) for u in units])


def reasons_of(cache: Cache) -> dict[str, str]:
    return dict(cache.rejected().select("key", "reason").collect().iter_rows())


BOTH = pytest.mark.parametrize(
    "write", [pytest.param(write_parquet, id="parquet"), pytest.param(write_saved, id="saved")]
)
ONE_QUICKLY = pytest.mark.parametrize(
    "write",
    [
        pytest.param(write_parquet, id="parquet"),
        pytest.param(write_saved, id="saved", marks=pytest.mark.slow),
    ],
)
"""What does not depend on the kind of the files."""


@BOTH
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_targets_are_those_of_the_same_images_as_plain_files(
    tiny_checkpoint: Path, tmp_path: Path, write: Write, num_workers: int
) -> None:
    settings = {"num_views": 1, "batch_size": 5, "decode_workers": num_workers}
    corpus = write(tmp_path / "packed", range(25))
    summary, packed = run(corpus, tmp_path / "a", tiny_checkpoint, **settings)
    plain_corpus = write_plain(tmp_path / "plain", range(25))
    _, plain = run(plain_corpus, tmp_path / "b", tiny_checkpoint, **settings)
    np.testing.assert_array_equal(images_of(packed), images_of(plain))
    assert packed.texts().collect().equals(plain.texts().collect())
    assert packed.captions().collect().equals(plain.captions().collect())
    assert (summary.num_images, summary.num_rejected) == (25, 0)
    assert summary.times.read_s > 0

    assert verify_cache(packed).faults == []
    live = verify_live(packed, 8, make_teacher=lambda *_: FakeTeacher())
    assert live.faults == []
    assert live.cosines["image"].min > 0.999


@BOTH
def test_rows_that_share_only_their_bytes_stay_samples_and_are_counted(
    tiny_checkpoint: Path, tmp_path: Path, write: Write
) -> None:
    corpus = write(tmp_path / "packed", [1, 2, 1, 1, 2, 5])
    summary, cache = run(corpus, tmp_path / "c", tiny_checkpoint, num_views=1, decode_workers=0)
    assert (cache.num_samples, summary.num_copies) == (6, 3)
    config = config_of(corpus, tmp_path / "c", tiny_checkpoint)
    [line] = [x for x in summary_lines(config, summary) if x.startswith("copies")]
    assert line.startswith(
        "copies     3 images with the bytes of another image, kept as separate samples"
    )
    assert len(line) < 300


@ONE_QUICKLY
def test_two_builds_in_two_processes_give_equal_bytes(
    tiny_checkpoint: Path, tmp_path: Path, write: Write
) -> None:
    corpus = write(tmp_path / "corpus", range(20))
    for seed, name in enumerate(("a", "b")):
        command = [sys.executable, KIT / "run_build.py", corpus, tmp_path / name, tiny_checkpoint]
        subprocess.run(
            [*map(str, command)],
            check=True,
            timeout=PATIENCE_S,
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
        )
    assert tree_of(tmp_path / "a") == tree_of(tmp_path / "b")


@ONE_QUICKLY
def test_a_killed_build_goes_on_to_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, write: Write
) -> None:
    corpus = write(tmp_path / "corpus", range(20))

    def build_again(cache: str, *more: object) -> subprocess.CompletedProcess[str]:
        script = KIT / "run_build.py"
        command = [sys.executable, script, corpus, tmp_path / cache, tiny_checkpoint, *more]
        return processes.run(command)

    whole = build_again("a")
    assert whole.returncode == 0, whole.stderr
    num_ops = int(whole.stdout.split("ops ")[1])
    num_kills = 0
    for share in (0.1, 0.3, 0.3, 0.3):
        done = build_again("b", "--kill-at", max(3, int(num_ops * share)))
        num_kills += done.returncode == -signal.SIGKILL
    assert num_kills >= 2
    assert build_again("b").returncode == 0
    records = dict(tree_of(tmp_path / "a").items())
    again = dict(tree_of(tmp_path / "b").items())
    assert records == again


def test_a_new_file_is_appended_and_the_known_rows_stay(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_parquet(tmp_path / "corpus", range(12))
    _, before = run(corpus, tmp_path / "cache", tiny_checkpoint)
    old = images_of(before)
    write_file(corpus / "data" / "train-00003.parquet", [20, 21, 22])
    summary, cache = run(corpus, tmp_path / "cache", tiny_checkpoint)
    assert summary.plan.findings.num_samples == summary.num_images == 3
    assert summary.plan.findings.num_existing == 12
    np.testing.assert_array_equal(images_of(cache)[:12], old)
    assert verify_cache(cache).faults == []


def test_a_cache_inside_its_corpus_is_not_read_as_part_of_it(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_parquet(tmp_path / "corpus", range(6))
    run(corpus, corpus / "cache", tiny_checkpoint)
    again, _ = run(corpus, corpus / "cache", tiny_checkpoint)
    assert not again.plan.was_scanned
    write_file(corpus / "data" / "train-00003.parquet", [20])
    summary, cache = run(corpus, corpus / "cache", tiny_checkpoint)
    assert (summary.plan.findings.num_samples, summary.plan.findings.num_problems) == (1, 0)
    assert verify_cache(cache).faults == []


@BOTH
def test_a_file_that_was_replaced_after_the_plan_costs_its_own_rows_until_it_is_back(
    tiny_checkpoint: Path, tmp_path: Path, write: Write
) -> None:
    corpus = write(tmp_path / "corpus", range(18))
    victim = sorted(corpus.rglob("*.parquet" if write is write_parquet else "*.arrow"))[-1]
    data, times = victim.read_bytes(), victim.stat()

    def replace_and_load(*_: object) -> FakeTeacher:
        victim.write_bytes(data + b" ")
        return FakeTeacher()

    config = config_of(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=8)
    build(config, progress=SilentProgress(), make_teacher=replace_and_load)  # after planning
    planned = open_cache(tmp_path / "cache").num_samples
    reasons = reasons_of(open_cache(tmp_path / "cache"))
    assert 0 < len(reasons) < planned
    message = f"{len(data) + 1} bytes, it had {len(data)}"
    assert all("changed since it was planned" in r and message in r for r in reasons.values())

    victim.write_bytes(data)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    _, mended = run(corpus, tmp_path / "cache", tiny_checkpoint, retry_rejected=True)
    assert reasons_of(mended) == {}
    _, fresh = run(corpus, tmp_path / "fresh", tiny_checkpoint)
    np.testing.assert_array_equal(images_of(mended), images_of(fresh))


def test_a_file_replaced_by_other_row_groups_is_refused_by_name(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = write_file(tmp_path / "a.parquet", range(9))
    run(path, tmp_path / "cache", tiny_checkpoint)
    dataset_of(range(9)).to_parquet(path, batch_size=4)
    with pytest.raises(
        SettingError, match=r"of 6: 'a/3' had row group 1 and now has 0, 'a/4' had "
    ):
        run(path, tmp_path / "cache", tiny_checkpoint)


def test_bad_images_and_a_damaged_row_group_cost_their_rows_only(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    images = [png_of(i) for i in range(16)]
    images[1], images[2] = b"<html>not found</html>", b""
    table = pa.table({"image": images, "key": [f"k{i}" for i in range(16)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=4, use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)
    summary, cache = run(path, tmp_path / "cache", tiny_checkpoint, decode_workers=2)
    reasons = reasons_of(cache)
    assert sorted(reasons) == ["k1", "k10", "k11", "k2", "k8", "k9"]
    assert reasons["k2"] == "empty: 0 bytes"
    assert reasons["k9"].startswith("row group 2 is damaged: ")
    assert summary.num_rejected == 6


def test_a_dry_run_times_real_batches_and_writes_nothing(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_parquet(tmp_path / "corpus", range(30))
    config = config_of(corpus, tmp_path / "cache", tiny_checkpoint)
    found = dry_run(config, is_timed=True, make_teacher=lambda *_: FakeTeacher())
    assert found.num_images == 30
    assert found.images_per_s is not None
    assert any(line.startswith("time") for line in dry_run_lines(found))
    assert not (tmp_path / "cache").exists()
