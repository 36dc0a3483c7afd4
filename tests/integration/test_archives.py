"""Builds of corpora in tar archives: WebDataset, and what img2dataset wrote. The teacher is a fake one."""

import io
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.fakes import FakeTeacher, SilentProgress, config_of, draw_image, tree_of
from kit.patience import PATIENCE_S
from numpy.typing import NDArray

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError, SourceError
from siglip2_cache.precompute.build import BuildSummary, build
from siglip2_cache.precompute.dry_run import dry_run
from siglip2_cache.precompute.sources import tar_samples, webdataset
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.describe import describe, describe_lines
from siglip2_cache.store.verify.verify import verify_cache

RUN_BUILD = Path(__file__).parents[1] / "kit" / "run_build.py"
WRITTEN = Path(__file__).parents[1] / "data" / "img2dataset"


def picture(seed: int) -> bytes:
    sink = io.BytesIO()
    draw_image(seed).save(sink, "png")
    return sink.getvalue()


def put_tar(path: Path, numbers: range | list[int], *, mode: str = "w", caption: str = "") -> Path:
    """Write or append samples img000 ...: a picture and a caption each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for i in numbers:
            text = f"{caption}Picture {i - i % 3}".encode()
            for ending, data in (("png", picture(i)), ("txt", text)):
                info = tarfile.TarInfo(f"img{i:03d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def put_shards(root: Path, num_shards: int, size: int = 4) -> Path:
    for shard in range(num_shards):
        put_tar(root / f"{shard:03d}.tar", range(shard * size, (shard + 1) * size))
    return root


def run(source: Path, cache: Path, checkpoint: Path, **settings: Any) -> tuple[Cache, BuildSummary]:
    config = config_of(source, cache, checkpoint, **{"shard_rows": 4, **settings})
    summary = build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    return open_cache(cache), summary


def targets_of(cache: Cache) -> dict[str, NDArray[np.float16]]:
    """The target of each key."""
    samples = cache.samples().select("key", "row").collect()
    values = cache.image_targets().read(samples["row"].to_numpy())
    return dict(zip(samples["key"], values, strict=True))


def assert_same_targets(ours: Cache, theirs: Cache) -> None:
    found, expected = targets_of(ours), targets_of(theirs)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values)


def captions_of(cache: Cache) -> list[tuple[str, str]]:
    rows = cache.samples().join(cache.captions(), on="row").join(cache.texts(), on="text_row")
    return sorted(rows.select("key", "text").collect().iter_rows())


def test_images_in_tars_get_the_targets_that_they_get_as_files(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tars = put_shards(tmp_path / "tars", 3)
    files = tmp_path / "files"
    for path in sorted(tars.iterdir()):
        with tarfile.open(path) as tar:
            tar.extractall(files, filter="data")
    ours, summary = run(tars, tmp_path / "ours", tiny_checkpoint, num_views=2, decode_workers=1)
    theirs, _ = run(files, tmp_path / "theirs", tiny_checkpoint, num_views=2)
    assert summary.plan.findings.num_samples == 12
    assert ours.rejected().collect().height == 0
    assert_same_targets(ours, theirs)
    assert captions_of(ours) == captions_of(theirs)
    assert verify_cache(ours).faults == []
    assert f"source     webdataset {tars}" in describe_lines(describe(ours))
    assert ours.table("files").collect()["path"].to_list() == ["000.tar", "001.tar", "002.tar"]


def test_both_formats_of_img2dataset_get_the_same_targets_and_captions(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tars, _ = run(WRITTEN / "webdataset", tmp_path / "tars", tiny_checkpoint)
    files, _ = run(WRITTEN / "files", tmp_path / "files", tiny_checkpoint)
    assert tars.num_samples == 5
    assert_same_targets(tars, files)
    assert captions_of(tars) == captions_of(files)
    for cache in (tars, files):
        assert cache.samples().collect()["source_sha256"].null_count() == 0
        [reason] = cache.table("problems").collect()["reason"].to_list()
        assert reason == "1 of 3 rows were not downloaded: HTTP Error 404: File not found"
        assert verify_cache(cache).faults == []


def test_a_pattern_beside_another_source_is_called_after_its_folder(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    put_shards(tmp_path / "web", 2, size=1)
    put_tar(tmp_path / "more.tar", [7])
    sources = [f"{tmp_path}/web/{{000..001}}.tar", tmp_path / "more.tar"]
    config = config_of(sources, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    cache = open_cache(tmp_path / "cache")
    keys = cache.samples().collect()["key"].to_list()
    assert keys == ["web/img000", "web/img001", "more/img007"]


# -- planning shard by shard


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tars that were walked, in order."""
    names: list[str] = []

    def spy(path: Path, relative: str, *choice: Any) -> Iterator[Any]:
        names.append(relative)
        return tar_samples.tar_samples(path, relative, *choice)

    monkeypatch.setattr(webdataset, "tar_samples", spy)
    return names


def test_a_plan_that_was_stopped_goes_on_with_the_shard_it_was_at(
    tiny_checkpoint: Path, tmp_path: Path, scanned: list[str]
) -> None:
    tars = put_shards(tmp_path / "tars", 4)
    whole = (tars / "002.tar").read_bytes()
    (tars / "002.tar").write_bytes(b"\x1f\x8b" + whole[2:])  # looks compressed: refused
    with pytest.raises(SourceError, match=r"002\.tar is compressed"):
        run(tars, tmp_path / "cache", tiny_checkpoint)
    assert scanned == ["000.tar", "001.tar", "002.tar"]
    (tars / "002.tar").write_bytes(whole)
    del scanned[:]
    cache, _ = run(tars, tmp_path / "cache", tiny_checkpoint)
    assert scanned == ["002.tar", "003.tar"]
    assert cache.num_samples == 16
    assert [n for n in os.listdir(tmp_path / "cache/catalog") if n.endswith(".partial")] == []
    run(tars, tmp_path / "elsewhere", tiny_checkpoint)
    assert tree_of(tmp_path / "cache") == tree_of(tmp_path / "elsewhere")


def run_in_process(
    source: Path, cache: Path, checkpoint: Path, *options: str, hash_seed: int = 0
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, RUN_BUILD, source, cache, checkpoint, *options]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=PATIENCE_S, env=environment
    )


def test_killed_again_and_again_the_cache_equals_one_that_was_built_in_one_go(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tars = put_shards(tmp_path / "tars", 6, size=2)
    whole = run_in_process(tars, tmp_path / "whole", tiny_checkpoint, hash_seed=1)
    assert whole.returncode == 0, whole.stderr
    num_ops = int(whole.stdout.split()[-1])
    random_ = random.Random(0)
    most_kept = num_kills = 0
    cache = tmp_path / "cache"
    kill_at = 9  # within the scans: each takes a few operations
    while True:
        options = ("--kill-at", str(kill_at))
        result = run_in_process(tars, cache, tiny_checkpoint, *options, hash_seed=2 + num_kills)
        if result.returncode == 0:
            break
        assert result.returncode == -9, result.stderr
        num_kills += 1
        if not (cache / "cache.json").exists():
            kept = [n for n in os.listdir(cache / "catalog") if n.startswith("scan-")]
            most_kept = max(most_kept, len(kept))
        kill_at = random_.randrange(8, num_ops // 3)
        assert num_kills < 60
    assert num_kills >= 4
    assert most_kept >= 2
    assert tree_of(cache) == tree_of(tmp_path / "whole")


# -- a corpus that grows or changes


def test_a_new_tar_is_appended_and_known_rows_stay(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tars = put_shards(tmp_path / "tars", 2)
    before, _ = run(tars, tmp_path / "cache", tiny_checkpoint)
    old = targets_of(before)
    put_tar(tars / "000a.tar", range(20, 23))  # between the others by name
    after, summary = run(tars, tmp_path / "cache", tiny_checkpoint)
    assert summary.plan.findings.num_samples == 3
    assert summary.plan.findings.num_existing == 8
    samples = after.samples().collect()
    assert samples["key"].to_list()[8:] == ["img020", "img021", "img022"]
    new = targets_of(after)
    for key, values in old.items():
        np.testing.assert_array_equal(new[key], values)
    assert verify_cache(after).faults == []


def test_a_tar_that_grew_keeps_its_known_rows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = put_tar(tmp_path / "a.tar", range(5))
    before, _ = run(path, tmp_path / "cache", tiny_checkpoint)
    old = targets_of(before)
    put_tar(path, range(5, 7), mode="a")
    after, summary = run(path, tmp_path / "cache", tiny_checkpoint)
    assert (summary.plan.findings.num_existing, summary.plan.findings.num_samples) == (5, 2)
    new = targets_of(after)
    assert list(new) == [f"img{i:03d}" for i in range(7)]
    for key, values in old.items():
        np.testing.assert_array_equal(new[key], values)
    assert verify_cache(after).faults == []


def test_a_tar_with_other_places_for_known_samples_is_refused_by_name(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = put_tar(tmp_path / "a.tar", range(5))
    run(path, tmp_path / "cache", tiny_checkpoint)
    put_tar(path, [9, 0, 1, 2, 3, 4])
    with pytest.raises(
        SettingError, match=r"^5 samples of .*: 'img000' had first byte 512 and now has 2560, "
    ):
        run(path, tmp_path / "cache", tiny_checkpoint)
    put_tar(path, range(5), caption="Another ")
    with pytest.raises(SettingError, match="captions"):
        run(path, tmp_path / "cache", tiny_checkpoint)


def test_a_tar_that_was_replaced_after_the_plan_rejects_its_images_and_no_others(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tars = put_shards(tmp_path / "tars", 3)
    config = config_of(tars, tmp_path / "cache", tiny_checkpoint, shard_rows=4)

    def replacing(*_: object) -> FakeTeacher:  # called between the plan and the first image
        put_tar(tars / "000.tar", [90, 91, 92, 93])
        (tars / "001.tar").unlink()
        return FakeTeacher()

    build(config, progress=SilentProgress(), make_teacher=replacing)
    reasons = dict(
        open_cache(tmp_path / "cache").rejected().select("key", "reason").collect().iter_rows()
    )
    assert list(reasons) == [f"img{i:03d}" for i in range(8)]
    assert reasons["img000"] == (
        f"the archive changed since it was planned: byte 512 is not the start of 'img000.png' with "
        f"{len(picture(0))} bytes"
    )
    assert reasons["img004"] == "no such file"


def test_a_dry_run_with_time_reads_from_tars_and_writes_nothing(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tars = put_shards(tmp_path / "tars", 3)
    config = config_of(tars, tmp_path / "cache", tiny_checkpoint, shard_rows=4)
    found = dry_run(config, is_timed=True, make_teacher=lambda *_: FakeTeacher())
    assert found.num_images == 12
    assert not (tmp_path / "cache").exists()


def test_a_corpus_without_a_single_image_is_refused_with_what_was_found(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.tar").touch()
    with pytest.raises(SourceError, match=r"no images in .*a\.tar \(.*a\.tar: it is empty: 0 b"):
        run(tmp_path / "a.tar", tmp_path / "cache", tiny_checkpoint)
    with pytest.raises(SourceError, match=r"no images in .* \(.*x1\.tar: no such file; .*x2\.tar"):
        run(tmp_path / "x{1..9}.tar", tmp_path / "cache", tiny_checkpoint)
