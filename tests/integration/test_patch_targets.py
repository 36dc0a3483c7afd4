"""Patch targets from end to end: build, resume, retry, append, and what refuses them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.commands import error_line
from kit.fakes import (
    FakeFactory,
    FakeNaflexTeacher,
    FakeTeacher,
    SilentProgress,
    config_of,
    tree_of,
    write_folder_corpus,
)
from PIL import Image

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.dry_run import dry_run, dry_run_lines
from siglip2_cache.siglip import encode_images, load_model, resolve_checkpoint, vision_tower
from siglip2_cache.store.format import layout
from siglip2_cache.store.verify.verify import verify_cache

Command = Callable[..., tuple[int, str, str]]


def build_fake(corpus: Path, cache: Path, checkpoint: Path, **settings: object) -> SilentProgress:
    progress = SilentProgress()
    config = config_of(corpus, cache, checkpoint, shard_rows=4, **settings)
    build(config, progress=progress, make_teacher=FakeFactory())
    return progress


def test_a_real_teacher_s_cells_are_in_the_cache(
    tiny_checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 6)
    config = config_of(
        corpus,
        tmp_path / "cache",
        tiny_checkpoint,
        shard_rows=4,
        num_views=2,
        batch_size=4,
        patch_targets=2,
        patch_dims=8,
    )
    progress = SilentProgress()
    build(config, progress=progress)
    [line] = [line for line in progress.said if line.startswith("patch targets")]
    assert line.startswith("patch targets: 4 cells of 8 of 64 values keep 9")
    assert line.endswith("of the squared norm (measured on 6 images)")
    cache = open_cache(tmp_path / "cache")
    assert verify_cache(cache).faults == []
    targets = cache.patch_targets()
    found = targets.read(np.arange(6))
    assert found.grids_V2.tolist() == [[2, 2]] * 6
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    model = load_model(checkpoint, device="cpu", compute_dtype="float32")
    H, W = checkpoint.image.size  # type: ignore[union-attr]
    pictures = [Image.open(corpus / f"img{i:03d}.png").convert("RGB") for i in range(6)]
    resized = [np.asarray(p.resize((W, H), checkpoint.image.resample)) for p in pictures]
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack(resized))
        tokens = encode_images(vision_tower(model), checkpoint, pixels, None).tokens_BND.numpy()
    side = int(tokens.shape[1] ** 0.5)
    cells = tokens.reshape(6, 2, side // 2, 2, side // 2, 64).mean(axis=(2, 4)).reshape(6, 4, 64)
    values = found.values_VCP.astype(np.float32)
    step = np.abs(values).max(axis=-1, keepdims=True) / 127
    assert (np.abs(values - cells @ targets.basis.T) <= 0.6 * step + 4e-3).all()
    restored = values @ targets.basis
    kept = 1 - ((restored - cells) ** 2).sum() / (cells**2).sum()
    assert kept == pytest.approx(targets.settings.kept, abs=0.01)
    status, out, _ = command("info", tmp_path / "cache", "--json")
    described = json.loads(out)["teachers"]["tiny"]
    assert (status, described["patches"]["grid"], described["patches"]["dim"]) == (0, 2, 8)
    again = ("verify", tmp_path / "cache", "--sample", 3, "--device", "cpu", "--json")
    status, out, _ = command(*again)
    sample = json.loads(out)["sample"]["patch"]
    assert (status, sample["count"]) == (0, 6)
    assert 0.999 < sample["min_cosine"] < 1
    shard = tmp_path / "cache" / layout.shard("tiny", "patch", 0)
    data = np.frombuffer(shard.read_bytes(), np.int8).copy()
    data[: 4 * 2 * 4 * 16].reshape(-1, 16)[:, 1] ^= 64  # one value of each cell of rows 0 to 3
    shard.write_bytes(data.tobytes())
    status, out, _ = command(*again)
    assert status == 1
    assert any("patch: " in fault and "differ from" in fault for fault in json.loads(out)["faults"])


def test_embeddings_and_catalog_are_those_of_a_build_without_them(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 6)
    build_fake(corpus, tmp_path / "with", tiny_checkpoint, num_views=2, patch_targets=2)
    build_fake(corpus, tmp_path / "without", tiny_checkpoint, num_views=2)
    ours, plain = tree_of(tmp_path / "with"), tree_of(tmp_path / "without")
    patches = {path for path in ours if "/patch" in path}
    assert ours.keys() - patches == plain.keys()
    different = {path for path in plain if plain[path] != ours[path]}
    records = {"teachers/tiny/teacher.json"}
    records |= {path for path in plain if "/commits/image-" in path}
    assert different == records
    assert len(patches) == 2 + 1 + 2  # map, metadata, shards


def test_retried_rows_join_others_that_keep_their_bytes_and_samples_are_appended(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus, root = write_folder_corpus(tmp_path / "corpus", 6), tmp_path / "cache"
    broken = corpus / "img001.png"
    good, stat = broken.read_bytes(), broken.stat()
    broken.write_bytes(good[: len(good) // 2])
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    build_fake(corpus, root, tiny_checkpoint, patch_targets=2, patch_dims=16)
    shard = root / layout.shard("tiny", "patch", 0)
    row_bytes = 4 * (16 + 8)
    before = np.frombuffer(shard.read_bytes()[: 4 * row_bytes], np.int8).reshape(4, row_bytes)
    assert not before[1].any()
    broken.write_bytes(good)
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    write_folder_corpus(corpus, 3, first=6)
    # What is recorded holds without the options.
    build_fake(corpus, root, tiny_checkpoint, retry_rejected=True)
    after = np.frombuffer(shard.read_bytes()[: 4 * row_bytes], np.int8).reshape(4, row_bytes)
    np.testing.assert_array_equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert after[1].any()
    cache = open_cache(root)
    assert verify_cache(cache).faults == []
    assert cache.patch_targets().read([0, 1, 5, 8, 10]).grids_V2.tolist() == [[2, 2]] * 5


def test_workers_in_processes_of_their_own_store_the_same(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 9)
    for name, workers in (("one", 1), ("two", 2)):
        build_fake(
            corpus, tmp_path / name, tiny_checkpoint, patch_targets=3, workers=workers, batch_size=4
        )
    one, two = tree_of(tmp_path / "one"), tree_of(tmp_path / "two")
    same = [path for path in one if "/commits/" not in path]
    assert [path for path in same if one[path] != two[path]] == []


def test_naflex_views_have_grids_of_their_own(naflex_checkpoint: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    random = np.random.default_rng(0)
    for i, (width, height) in enumerate([(48, 48), (96, 24), (12, 60)]):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(corpus / f"{i}.png")
    config = config_of(corpus, tmp_path / "cache", naflex_checkpoint, patch_targets=2, patch_dims=8)
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeNaflexTeacher())
    cache = open_cache(tmp_path / "cache")
    assert verify_cache(cache).faults == []
    found = cache.patch_targets().read([0, 1, 2])
    assert found.grids_V2.tolist() == [[2, 2], [1, 4], [3, 1]]
    assert found.values_VCP[1].any(axis=1).all()


def test_a_dry_run_and_an_estimate_count_the_bytes(
    tiny_checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 6)
    config = config_of(
        corpus, tmp_path / "new", tiny_checkpoint, shard_rows=4, patch_targets=2, patch_dims=24
    )
    found = dry_run(config, is_timed=False)
    shard_bytes = 4 * 4 * (24 + 8) + 16 + 4  # rows x cells x bytes, and the index of one chunk
    assert found.num_patch_bytes == 2 * shard_bytes
    assert ", 1.1 kB of patch targets (4 x 24 x int8)" in "\n".join(dry_run_lines(found))
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    shard = tmp_path / "new" / layout.shard("tiny", "patch", 0)
    assert shard.stat().st_size == shard_bytes
    arguments = ("estimate", "--images", "1M", "--teacher", "so400m-patch14-224", "--json")
    plain, ours = (
        json.loads(command(*arguments, *extra)[1])
        for extra in ((), ("--patch-targets", 7, "--patch-dims", 256))
    )
    patches = ours["bytes"]["patch_targets"]
    assert patches["value"] == pytest.approx(1e6 * 49 * (256 + 8), rel=0.01)
    assert "49 cells x (256 + 8) B" in patches["formula"]
    more = ours["bytes"]["bytes"]["value"] - plain["bytes"]["bytes"]["value"]
    assert more == pytest.approx(patches["value"])
    assert "patch_targets" not in plain["bytes"]
    memory = [each["units"]["worker_memory"]["value"] for each in (plain, ours)]
    assert memory[1] - memory[0] == 3 * ours["units"]["patch_shard"]["value"]


def test_other_patch_targets_and_impossible_ones_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 5)
    for name, settings in (("with", {"patch_targets": 2}), ("without", {})):
        build_fake(corpus, tmp_path / name, tiny_checkpoint, **settings)
    for name, settings, message in (
        ("with", {"patch_targets": 3}, r"--patch-targets of tiny in .*with is 2, and 3 was asked"),
        (
            "with",
            {"patch_targets": 2, "patch_dims": 8},
            r"--patch-dims of tiny .* is 64, and 8 was",
        ),
        (
            "without",
            {"patch_targets": 2},
            r"tiny in .*without has no patch targets, which are made",
        ),
    ):
        with pytest.raises(SettingError, match=message):
            build_fake(corpus, tmp_path / name, tiny_checkpoint, **settings)
        with pytest.raises(SettingError, match=message):
            dry_run(config_of(corpus, tmp_path / name, tiny_checkpoint, **settings), is_timed=False)
    for extra, message in (
        (("--patch-targets", 65), "patch targets must be 1 to 64, got 65"),
        (("--patch-dims", 8), "--patch-dims 8 goes with --patch-targets"),
        (("--patch-targets", 2, "--patch-dims", 0), "patch dims must be at least 1, got 0"),
        (("--patch-targets", 9), "patch targets 9 is more than the 4 patches on a side of "),
        (("--patch-targets", 2, "--patch-dims", 65), "patch dims 65 is more than the width 64 of "),
    ):
        given = ("build", corpus, tmp_path / "x", "--teacher", tiny_checkpoint, "--device", "cpu")
        assert error_line(*command(*given, *extra)).startswith(message)
    assert not (tmp_path / "x" / "teachers").exists()


def test_a_corpus_without_a_readable_image_has_no_map(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 2)
    for path in corpus.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(SettingError, match=r"and none of 2 images of .* can be read; use --corpus"):
        build_fake(corpus, tmp_path / "cache", tiny_checkpoint, patch_targets=2)
    assert open_cache(tmp_path / "cache").teachers == ()
