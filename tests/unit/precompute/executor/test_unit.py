"""Units that are made again for the sake of their rejected rows."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from siglip2_cache import open_cache
from siglip2_cache.precompute.executor.pending import find_jobs
from siglip2_cache.precompute.executor.unit import open_rows
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.targets.targets import Targets

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache


def say(message: str) -> None:
    raise AssertionError(message)


def test_what_reads_rows_is_made_once_an_array_however_many_units_are_tried_again(
    foreign: "ForeignCache", monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = Targets.__init__

    def init(self: Targets, *args: Any) -> None:
        made.append(args[3])
        real(self, *args)

    monkeypatch.setattr(Targets, "__init__", init)
    cache = open_cache(foreign.root)
    jobs = find_jobs(
        cache, "tiny", batch_size={"image": 2, "text": 2}, retry_rejected=True, say=say
    )
    assert [(job.unit.modality, job.unit.number) for job in jobs] == [
        *(("image", 1), ("image", 3), ("text", 0))
    ]
    for job in jobs:
        rows = open_rows(cache, "tiny", job)
        first = job.unit.rows.first
        expected = foreign.targets["tiny", job.unit.modality][first : first + len(rows.stored)]
        np.testing.assert_array_equal(rows.stored, expected)
    assert made == ["tiny", "tiny"]  # images, texts


@pytest.mark.skipif(sys.platform != "linux", reason="no list of maps elsewhere")
def test_the_shard_that_is_replaced_is_mapped_by_nobody(foreign: "ForeignCache") -> None:
    cache = open_cache(foreign.root)
    jobs = find_jobs(
        cache, "tiny", batch_size={"image": 2, "text": 2}, retry_rejected=True, say=say
    )
    for job in jobs:
        open_rows(cache, "tiny", job)
    assert str(foreign.root / "teachers/tiny/image.zarr") not in Path("/proc/self/maps").read_text()


def test_a_share_reads_the_files_of_its_own_units_alone(
    foreign: "ForeignCache", monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = LocalStorage.describe

    def describe(self: LocalStorage, path: str) -> dict[str, Any]:
        read.append(path)
        return real(self, path)

    monkeypatch.setattr(LocalStorage, "describe", describe)
    jobs = find_jobs(
        open_cache(foreign.root),
        "tiny",
        batch_size={"image": 2, "text": 2},
        retry_rejected=True,
        say=say,
        owns=lambda unit: unit == 3,
    )
    assert len(jobs) == 3
    assert read == ["teachers/tiny/image.zarr/c/3/0/0", "teachers/tiny/images/00003.parquet"]
