"""A cache in an object store gives the same targets as the same cache on this machine."""

import json
import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from kit.vectors import write_vectors

from siglip2_cache import open_cache
from siglip2_cache.errors import DamagedCacheError, DiskFullError
from siglip2_cache.store.convert import convert_cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.io.download_cache import LocalCopies
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.io.location import parse_location
from siglip2_cache.store.io.remote import RemoteStorage
from siglip2_cache.store.io.storage import open_storage

if TYPE_CHECKING:
    from kit.s3 import S3


@pytest.fixture
def both(memory: str, tmp_path: Path) -> tuple[Path, str]:
    draw = np.random.default_rng(0)
    local = write_vectors(
        tmp_path / "local",
        {
            "image": draw.normal(size=(300, 3, 16)).astype(np.float16),
            "text": draw.normal(size=(500, 16)).astype(np.float16),
        },
        shard_rows=128,
    )
    files, root = open_storage(parse_location(f"{memory}/cache")), LocalStorage(local)
    for path in root.walk():
        files.write(path, root.read(path))
    return local, f"{memory}/cache"


@pytest.mark.parametrize("limit", [None, 50_000, 20_000])
def test_rows_are_those_of_the_local_cache(
    both: tuple[Path, str], tmp_path: Path, limit: int | None
) -> None:
    local, url = both
    here, there = open_cache(local), open_cache(url, copies=LocalCopies(tmp_path / "c", limit))
    draw = np.random.default_rng(1)
    rows, views = draw.integers(0, 300, 400), draw.integers(0, 3, 400)
    expected = here.image_targets().read(rows, views)
    np.testing.assert_array_equal(there.image_targets().read(rows, views), expected)
    texts = draw.permutation(500)
    np.testing.assert_array_equal(there.text_targets().read(texts), here.text_targets().read(texts))
    found, valid = there.image_targets().read_masked(np.array([299, 300, 0]))
    assert valid.tolist() == [True, False, True]
    np.testing.assert_array_equal(found[[0, 2]], here.image_targets().read(np.array([299, 0])))
    held = sum(path.stat().st_size for path in (tmp_path / "c").rglob("*") if path.is_file())
    assert held <= (limit or held)


@pytest.mark.parametrize("limit", [None, 10_000])  # shards copied, and rows requested one by one
def test_int8_rows_are_those_of_the_local_cache(
    both: tuple[Path, str], tmp_path: Path, limit: int | None
) -> None:
    local, url = both
    convert_cache(open_cache(local), tmp_path / "int8", targets="int8", budget=1)
    convert_cache(open_cache(local), parse_location(f"{url}-int8"), targets="int8", budget=1)
    copies = LocalCopies(tmp_path / "c", limit)
    here, there = open_cache(tmp_path / "int8"), open_cache(f"{url}-int8", copies=copies)
    draw = np.random.default_rng(1)
    rows, views = draw.integers(0, 300, 400), draw.integers(0, 3, 400)
    expected = here.image_targets().read(rows, views)
    np.testing.assert_array_equal(there.image_targets().read(rows, views), expected)
    again = pickle.loads(pickle.dumps(there.image_targets()))
    np.testing.assert_array_equal(again.read(rows, views), expected)


def test_it_survives_a_pickle(both: tuple[Path, str], tmp_path: Path) -> None:
    targets = open_cache(both[1], copies=LocalCopies(tmp_path / "c")).text_targets()
    again = pickle.loads(pickle.dumps(targets))
    np.testing.assert_array_equal(again.read([3, 1]), targets.read([3, 1]))


def test_a_forked_process_reads_on(s3: "S3", tmp_path: Path) -> None:
    local = write_vectors(
        tmp_path / "local",
        {"text": np.arange(1, 1025, dtype=np.float16).reshape(64, 16)},
        shard_rows=32,
    )
    files, root = open_storage(parse_location(f"{s3.url}/cache")), LocalStorage(local)
    for path in root.walk():
        files.write(path, root.read(path))
    for limit in (None, 100):  # shards copied, and rows asked for one by one
        copies = LocalCopies(tmp_path / f"copies-{limit}", limit)
        cache = open_cache(f"{s3.url}/cache", copies=copies)
        targets = cache.text_targets()
        targets.read([0, 20])
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            try:
                os._exit(0 if targets.read([63, 40]).all() else 1)
            except BaseException:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0, limit


def test_no_rows_are_no_requests(both: tuple[Path, str], tmp_path: Path) -> None:
    cache = open_cache(both[1], copies=LocalCopies(tmp_path / "c", 20_000))
    targets = cache.image_targets()
    assert targets.read([]).shape == (0, 16)
    found, valid = targets.read_masked([300, -1])
    assert np.isnan(found).all()
    assert not valid.any()


def test_shards_of_another_program_are_not_taken_for_rows(
    both: tuple[Path, str], tmp_path: Path
) -> None:
    files = RemoteStorage(parse_location(both[1]))
    path = "teachers/vectors/text.zarr/zarr.json"
    metadata = json.loads(files.read(path))
    metadata["codecs"] = [*metadata["codecs"], {"name": "zstd", "configuration": {"level": 0}}]
    files.write(path, json.dumps(metadata).encode())
    targets = open_cache(both[1], copies=LocalCopies(tmp_path / "c", 4_000)).text_targets()
    with pytest.raises(DamagedCacheError, match="cannot be decoded"):
        targets.read([3, 1])


def test_a_cache_that_is_read_again_keeps_its_copies_where_they_are(
    both: tuple[Path, str], tmp_path: Path
) -> None:
    cache = open_cache(both[1], copies=LocalCopies(tmp_path / "c"))
    now = cache.renewed().files
    assert isinstance(now, RemoteStorage)
    assert now.copies.folder == tmp_path / "c"


def test_a_lost_shard_is_named(both: tuple[Path, str], tmp_path: Path) -> None:
    RemoteStorage(parse_location(both[1])).remove("teachers/vectors/text.zarr/c/1/0")
    targets = open_cache(both[1], copies=LocalCopies(tmp_path / "c")).text_targets()
    with pytest.raises(DamagedCacheError, match=r"shard is missing .*c/1/0"):
        targets.read([200])


def test_a_copy_without_room_is_no_damage(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = LocalStorage(
        write_vectors(tmp_path / "local", {"image": np.ones((4, 1, 8), np.float16)}, shard_rows=4)
    )
    files = open_storage(parse_location(f"{memory}/cache"))
    for path in local.walk():
        files.write(path, local.read(path))
    cache = open_cache(f"{memory}/cache", copies=LocalCopies(tmp_path / "copies", 10))
    images = layout.images_part("vectors", 0)
    unit = SimpleNamespace(files={images: {"num_bytes": 11, "sha256": "0" * 64}})
    monkeypatch.setattr(
        cache, "commits", lambda teacher: SimpleNamespace(units={("image", 0): unit})
    )
    with pytest.raises(DiskFullError, match="does not fit"):
        cache.seen("vectors", 0)
