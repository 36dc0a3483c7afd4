"""All shards in one range of addresses: the same rows, no open files, nothing touched unmapped."""

import multiprocessing
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from kit.fakes import EMBED_DIM, FakeTeacher, SilentProgress, config_of, write_folder_corpus

from siglip2_cache import Cache, open_cache
from siglip2_cache.errors import DamagedCacheError, RowUnavailableError
from siglip2_cache.precompute.build import build
from siglip2_cache.store.format import layout
from siglip2_cache.store.targets import shard_maps
from siglip2_cache.store.targets.targets import Targets

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere shards are mapped singly"
)

SHARD_ROWS = 64  # x 2 views x 64 x 2 bytes: four pages


@pytest.fixture(scope="module")
def cache_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of two generations with a gap, two views, five units and a rejected row."""
    folder = tmp_path_factory.mktemp("shards")
    corpus = write_folder_corpus(folder / "corpus", 150)
    (corpus / "img003.png").write_bytes(b"no image")
    settings = {"shard_rows": SHARD_ROWS, "num_views": 2}
    for more in (0, 70):
        write_folder_corpus(corpus, more, first=150)
        config = config_of(corpus, folder / "cache", tiny_checkpoint, **settings)
        build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    return folder / "cache"


def singly(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Targets:
    """The same targets, read from shards mapped one by one."""
    with monkeypatch.context() as patch:
        patch.setattr(shard_maps, "_MAX_MAPPED_SHARDS", 0)
        targets = cache.renewed().image_targets()
    assert targets._map is None
    return targets


def num_maps(part: str) -> int:
    return Path("/proc/self/maps").read_text().count(part)


def test_rows_are_those_of_shards_mapped_one_by_one(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(cache_folder)
    together, alone = cache.image_targets(), singly(cache, monkeypatch)
    assert together._map is not None
    chooser = np.random.default_rng(0)
    for _ in range(20):
        rows = chooser.choice(together.available_rows(), 100)
        views = chooser.integers(0, 2, 100)
        np.testing.assert_array_equal(together.read(rows, views), alone.read(rows, views))
        np.testing.assert_array_equal(together.read(rows), alone.read(rows))
    assert together.read([]).shape == (0, EMBED_DIM)
    found = together.read([5])
    found[:] = 0  # what is given is a copy, the caller's own
    np.testing.assert_array_equal(together.read([5]), alone.read([5]))


def test_only_shards_that_were_asked_for_are_mapped_and_none_stays_open(
    cache_folder: Path,
) -> None:
    shard = str(cache_folder / layout.array_folder("tiny", "image") / "c")
    before, num_open = num_maps(shard), len(os.listdir("/proc/self/fd"))
    targets = open_cache(cache_folder).image_targets()
    targets.read([0])
    assert num_maps(shard) == before + 1
    targets.read([70, 0, 71, 200])
    assert num_maps(shard) == before + 3
    assert len(os.listdir("/proc/self/fd")) == num_open
    del targets
    assert num_maps(shard) == before


def test_gaps_rejected_and_foreign_rows_are_refused_before_their_address_is_touched(
    cache_folder: Path,
) -> None:
    targets = open_cache(cache_folder).image_targets()
    for row, why in ((3, "was rejected"), (150, "is a gap"), (191, "is a gap"), (-1, "is not in")):
        with pytest.raises(RowUnavailableError, match=f"row {row} .*{why}"):
            targets.read([0, row])
    with pytest.raises(RowUnavailableError, match=r"row 262 is not in .*holds rows 0\.\.261"):
        targets.read([262])


def test_targets_survive_pickling_and_forking(cache_folder: Path) -> None:
    targets = open_cache(cache_folder).image_targets()
    rows = [0, 100, 261]
    expected = targets.read(rows)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(targets)).read(rows), expected)
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        writer.send(targets.read([*rows, 130]))
        os._exit(0)
    found = reader.recv()
    os.waitpid(child, 0)
    np.testing.assert_array_equal(found[:3], expected)


def test_a_shard_of_another_length_is_refused_and_not_mapped(
    cache_folder: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "cache"
    shutil.copytree(cache_folder, damaged)
    path = damaged / layout.shard("tiny", "image", 1)
    path.write_bytes(path.read_bytes()[:-100])
    targets = open_cache(damaged).image_targets()
    targets.read([0])
    with pytest.raises(
        DamagedCacheError, match=re.escape(str(path)) + ".*run siglip2-cache verify"
    ):
        targets.read([0, 64])


def test_where_no_addresses_are_left_shards_are_mapped_one_by_one(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(12, "Cannot allocate memory")

    expected = open_cache(cache_folder).image_targets().read([0, 100])
    monkeypatch.setattr(shard_maps, "_map_memory", refuse)
    targets = open_cache(cache_folder).image_targets()
    assert targets._map is None
    np.testing.assert_array_equal(targets.read([0, 100]), expected)
