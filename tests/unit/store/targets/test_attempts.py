"""Reading a unit of a cache in an object store that is committed again meanwhile."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from kit.memory_bucket import memory_bucket

from siglip2_cache.errors import DamagedCacheError, RowUnavailableError
from siglip2_cache.store.cache import Cache, open_cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.records import decode_record, encode_record
from siglip2_cache.store.format.transaction import Transaction, intent_path
from siglip2_cache.store.io.download_cache import LocalCopies
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.io.location import parse_location
from siglip2_cache.store.io.storage import Storage, open_storage

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

ROW = 8
"""Rejected at first, as row 9 is; the third of image unit 1."""

RECORD = layout.unit_record("tiny", "image", 1)
LATER = layout.unit_record("tiny", "image", 1, 1)
SHARD = layout.shard("tiny", "image", 1)
ROW_BYTES = 2 * 8 * 2  # views, embed_dim, float16


@pytest.fixture
def store() -> Iterator[None]:
    with memory_bucket():
        yield


@pytest.fixture
def cache(store: None, foreign: "ForeignCache", tmp_path: Path) -> Cache:
    """The foreign cache in a store, as it was opened before image unit 1 was committed again."""
    local, url = LocalStorage(foreign.root), f"memory://{tmp_path.name}/cache"
    files = open_storage(parse_location(url))
    for path in local.walk():
        files.write(path, local.read(path))
    cache = open_cache(url, copies=LocalCopies(tmp_path / "copies"))
    assert ROW in cache.commits("tiny").units["image", 1].rejected
    return cache


def commit_again(files: Storage, *, until: str) -> None:
    """Make row 8 anew; stop behind the intent's renames, or at the end."""
    shard = bytearray(files.read(SHARD))
    shard[2 * ROW_BYTES : 3 * ROW_BYTES] = np.full(2 * 8, 8**-0.5, np.float16).tobytes()
    fields = decode_record(files.read(RECORD), where=RECORD)
    rejected = [each for each in fields["rejected"] if each["row"] != ROW]
    later: dict[str, Any] = {**fields, "attempt": 1, "rejected": rejected}
    transaction = Transaction(files, LATER)
    transaction.add(SHARD, shard)
    if until == "the record stands":
        transaction.commit(later)
        return
    descriptions = transaction.descriptions
    [partial] = [path for path in files.walk() if path.startswith(f"{SHARD}.")]
    intent = {"record": {**later, "files": descriptions}, "staged": {SHARD: partial}}
    files.write(intent_path(LATER), encode_record(intent))
    files.rename(partial, SHARD)


@pytest.mark.parametrize("until", ["only the intent stands", "the record stands"])
def test_rows_that_had_a_target_are_read_all_the_same(
    cache: Cache, foreign: "ForeignCache", until: str
) -> None:
    targets = cache.image_targets("tiny")
    commit_again(cache.files, until=until)
    found, valid = targets.read_masked([6, 7, 8, 10])
    np.testing.assert_array_equal(found[[0, 1, 3]], foreign.targets["tiny", "image"][[6, 7, 10], 0])
    assert valid.tolist() == [True, True, False, True]
    with pytest.raises(RowUnavailableError, match=r"row 8 .* was rejected"):
        targets.read([8])
    np.testing.assert_array_equal(cache.renewed().image_targets("tiny").read([7]), found[1:2])


def test_bytes_that_no_attempt_describes_are_damaged(cache: Cache) -> None:
    targets = cache.image_targets("tiny")
    commit_again(cache.files, until="the record stands")
    cache.files.write(SHARD, cache.files.read(SHARD)[:-1] + b"x")
    with pytest.raises(DamagedCacheError, match="does not match its record"):
        targets.read([7])


def test_a_picture_that_was_made_meanwhile_is_not_seen(
    foreign: "ForeignCache", tmp_path: Path
) -> None:
    """A cache on this machine: the file is the later attempt's, the record the earlier one's."""
    root = shutil.copytree(foreign.root, tmp_path / "cache")
    cache = open_cache(root)
    cache.commits("tiny")
    part = root / layout.images_part("tiny", 1)
    pl.read_parquet(part).with_columns(sha256=pl.lit(b"0" * 32)).write_parquet(part)
    seen = cache.seen("tiny", 1)
    assert seen.filter(pl.col("sha256").is_null())["row"].to_list() == [8, 9]
