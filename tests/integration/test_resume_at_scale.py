"""Going on with a build of many units: what it reads and holds grows with the records, and with nothing else.

benchmarks/bench_scale.py says how long it takes at a billion samples.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from kit.fakes import FakeFactory, SilentProgress, config_of, write_folder_corpus
from kit.large_cache import enlarge
from kit.patience import PATIENCE_S

from siglip2_cache import open_cache
from siglip2_cache.precompute.build import BuildConfig, build
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.records import decode_record, encode_record
from siglip2_cache.store.format.unit_records import read_committed_units
from siglip2_cache.store.io.local import LocalStorage

SHARD_ROWS = 16_384
NUM_UNITS = 1_000
"""Of each modality, committed: 16 million images and as many texts."""

BILLION_UNITS = 61_036
KIT = Path(__file__).parents[1] / "kit"


def settings(root: Path, checkpoint: Path) -> BuildConfig:
    return config_of(
        root / "corpus", root / "cache", checkpoint, num_views=2, shard_rows=SHARD_ROWS
    )


@pytest.fixture(scope="module")
def planned(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small corpus and its finished cache; read it, do not change it."""
    root = tmp_path_factory.mktemp("planned")
    write_folder_corpus(root / "corpus", 8)
    build(settings(root, tiny_checkpoint), progress=SilentProgress(), make_teacher=FakeFactory())
    return root


@pytest.fixture(scope="module")
def large(planned: Path) -> Path:
    """The same after 16 million images more, whose units are all committed; 8 images are left."""
    enlarge(planned / "cache", NUM_UNITS)
    return planned


def test_a_build_goes_on_with_the_units_that_are_missing_and_reads_each_record_once(
    large: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()
    read, exists = LocalStorage.read, LocalStorage.exists
    monkeypatch.setattr(LocalStorage, "read", lambda s, p: counts.update(read=1) or read(s, p))
    monkeypatch.setattr(
        LocalStorage, "exists", lambda s, p: counts.update(exists=1) or exists(s, p)
    )
    progress = SilentProgress()
    before = tree_of_commits(large)
    done = build(settings(large, tiny_checkpoint), progress=progress, make_teacher=FakeFactory())
    assert (done.num_units, done.num_images, done.num_texts) == (2, 8, 3)
    assert progress.tally.units == {"image": 1, "text": 1}
    assert 2 * NUM_UNITS < counts["read"] < 2 * NUM_UNITS + 100
    assert counts["exists"] < 50
    assert tree_of_commits(large) - before == {
        f"image-{NUM_UNITS:05d}.json",
        f"text-{NUM_UNITS:05d}.json",
    }
    targets = open_cache(large / "cache").image_targets()
    rows = NUM_UNITS * SHARD_ROWS + 7
    assert targets.available([rows - SHARD_ROWS, rows, rows + 1]).tolist() == [True, True, False]


def tree_of_commits(root: Path) -> set[str]:
    [folder] = (root / "cache" / "teachers").glob("*/commits")
    return {path.name for path in folder.iterdir()}


def test_a_record_takes_so_little_memory_that_a_billion_samples_fit(large: Path) -> None:
    files = LocalStorage(large / "cache")
    cache = open_cache(files.root)
    [teacher], rows = cache.teachers, cache.shard_rows
    tracemalloc.start()
    commits = read_committed_units(files, layout.commits_folder(teacher), shard_rows=rows)
    # Not what pathlib interns: the table of all interned strings of the process may grow just now.
    others = tracemalloc.Filter(inclusive=False, filename_pattern=pathlib.__file__)
    snapshot = tracemalloc.take_snapshot().filter_traces([others])
    held = sum(trace.size for trace in snapshot.traces)
    del snapshot
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    again = read_committed_units(
        files, layout.commits_folder(teacher), shard_rows=rows, previous=commits
    )
    both, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    num_records = len(commits.units)
    assert num_records == len(again.units) >= 2 * NUM_UNITS
    assert held / num_records < 1600  # 122,072 records: 195 MB
    assert (both - before) / num_records < 400
    assert (peak - before) / num_records < 3000  # those that wait to be parsed


def test_rejected_rows_of_many_units_share_their_reasons(large: Path, tmp_path: Path) -> None:
    commits = next((large / "cache" / "teachers").glob("*/commits"))
    folder = tmp_path / "teachers" / "t" / "commits"
    folder.mkdir(parents=True)
    for first_row, name in ((0, "image-00000.json"), (SHARD_ROWS, "image-00001.json")):
        fields = decode_record((commits / name).read_bytes(), where=name)
        del fields["format_version"]
        rows = (first_row + 1, first_row + 2)
        fields["rejected"] = [{"row": row, "reason": "truncated image"} for row in rows]
        (folder / name).write_bytes(encode_record(fields))
    first, second = read_committed_units(
        LocalStorage(tmp_path), "teachers/t/commits", shard_rows=SHARD_ROWS
    ).units.values()
    assert [*first.rejected, *second.rejected] == [1, 2, SHARD_ROWS + 1, SHARD_ROWS + 2]
    assert first.rejected[1] == "truncated image"
    assert first.rejected[1] is second.rejected[SHARD_ROWS + 2]
    assert first.provenance is second.provenance


@pytest.mark.slow
def test_a_billion_samples_are_gone_on_with_in_less_than_a_gigabyte(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    write_folder_corpus(tmp_path / "corpus", 8)
    build(
        settings(tmp_path, tiny_checkpoint), progress=SilentProgress(), make_teacher=FakeFactory()
    )
    enlarge(tmp_path / "cache", BILLION_UNITS)
    assert open_cache(tmp_path / "cache").num_samples > 10**9
    paths = [tmp_path / "corpus", tmp_path / "cache", tiny_checkpoint]
    command = [sys.executable, KIT / "run_resume.py", *paths, "--views", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    shutil.rmtree(tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["num_units"], found["num_images"]) == (2, 8)
    assert found["whole"]["peak_bytes"] < 1e9
