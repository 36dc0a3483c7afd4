"""A build survives SIGKILL and power cuts at any instant, and another build beside it."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kit import processes
from kit.crashes import Disk, Recorder, spying
from kit.fakes import FakeTeacher, SilentProgress, config_of, tree_of, write_folder_corpus
from kit.patience import PATIENCE_S
from kit.processes import Process

from siglip2_cache import open_cache
from siglip2_cache.errors import NotACacheError
from siglip2_cache.precompute.build import build
from siglip2_cache.store.convert import convert_cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.verify.verify import verify_cache

RUN_BUILD = Path(__file__).parents[1] / "kit" / "run_build.py"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder_corpus(tmp_path_factory.mktemp("corpus"), 14, captions=2)


@pytest.fixture(scope="module")
def undisturbed(
    corpus: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], int]:
    """The files of a build that nothing disturbed, and how many operations it took."""
    cache = tmp_path_factory.mktemp("undisturbed") / "cache"
    result = run_build(corpus, cache, tiny_checkpoint)
    assert result.returncode == 0, result.stderr
    return tree_of(cache), int(result.stdout.split()[-1])


def run_build(
    corpus: Path, cache: Path, checkpoint: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, RUN_BUILD, corpus, cache, checkpoint, "--keep-pixels", 32, *options]
    return processes.run(command)


@pytest.mark.parametrize(
    ("num_least", "parts"),  # of all operations, that a run makes at least and at most
    [
        pytest.param(25, (40, 14), id="often", marks=pytest.mark.slow),
        pytest.param(6, (12, 6), id="at times"),
    ],
)
def test_killed_again_and_again_the_cache_equals_that_of_an_undisturbed_build(
    corpus: Path,
    tiny_checkpoint: Path,
    undisturbed: tuple[dict[str, bytes], int],
    tmp_path: Path,
    num_least: int,
    parts: tuple[int, int],
) -> None:
    expected, num_ops = undisturbed
    num_kills, num_units_seen = 0, set[int]()
    # Few operations a run, so that the kills spread over every phase of every unit. A run repeats
    # what was lost, so there are more runs than num_ops / step.
    step = random.Random(0)
    while True:
        assert num_kills < 200, "the build makes no progress"
        kill_at = step.randrange(num_ops // parts[0], num_ops // parts[1])
        result = run_build(corpus, tmp_path / "cache", tiny_checkpoint, "--kill-at", str(kill_at))
        if result.returncode == 0:
            break
        assert result.returncode == -9, result.stderr
        num_kills += 1
        num_units_seen.add(assert_readable(tmp_path / "cache", expected))
    assert num_kills >= num_least
    assert len(num_units_seen) >= min(8, num_least // 2), "the kills were not spread over the units"
    assert tree_of(tmp_path / "cache") == expected


def test_killed_at_times_a_build_of_other_targets_equals_an_undisturbed_one(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    others = ("--targets", "int8", "--patch-targets", "2")
    result = run_build(corpus, tmp_path / "undisturbed", tiny_checkpoint, *others)
    assert result.returncode == 0, result.stderr
    expected, num_ops = tree_of(tmp_path / "undisturbed"), int(result.stdout.split()[-1])
    step, num_kills = random.Random(1), 0
    while True:
        kill_at = str(step.randrange(num_ops // 9, num_ops // 4))
        result = run_build(
            corpus, tmp_path / "cache", tiny_checkpoint, *others, "--kill-at", kill_at
        )
        if result.returncode == 0:
            break
        assert result.returncode == -9, result.stderr
        num_kills += 1
        assert num_kills < 60, "the build makes no progress"
        assert_readable(tmp_path / "cache", expected)
    assert num_kills >= 4
    assert tree_of(tmp_path / "cache") == expected


def test_killed_while_the_teacher_works_the_cache_equals_an_undisturbed_one(
    corpus: Path,
    tiny_checkpoint: Path,
    undisturbed: tuple[dict[str, bytes], int],
    tmp_path: Path,
) -> None:
    expected, _ = undisturbed
    command = [sys.executable, RUN_BUILD, corpus, tmp_path / "cache", tiny_checkpoint]
    command += ["--keep-pixels", 32]
    for num_units in (1, 2, 1):
        process = Process([*command, "--hold-at", num_units], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(num_units):
            assert process.stdout.readline() == "unit\n"
        process.kill()
        process.wait()
        process.stdout.close()
        assert_readable(tmp_path / "cache", expected)
    assert run_build(corpus, tmp_path / "cache", tiny_checkpoint).returncode == 0
    assert tree_of(tmp_path / "cache") == expected


def assert_readable(cache_folder: Path, expected: dict[str, bytes]) -> int:
    """Check that what is committed has the bytes of an undisturbed build; return how many units."""
    try:
        cache = open_cache(cache_folder)
    except NotACacheError:
        return 0
    num_units = 0
    for teacher in cache.teachers:
        for commit in cache.commits(teacher).units.values():
            num_units += 1
            for path in commit.files:
                assert cache.files.read(path) == expected[path], path
    kept = cache.kept_pixels()
    for commit in kept.units.values() if kept else ():
        num_units += 1
        for path in commit.files:
            assert cache.files.read(path) == expected[path], path
    return num_units


# -- power cuts


class Outcomes:
    """What survives a power cut after each recorded operation, each outcome once."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __iter__(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        seen: set[int] = set()
        disk, chance = Disk(), random.Random(0)
        for i, operation in enumerate(self._recorder.operations):
            disk.apply(operation)
            for name, survivors in (
                ("only what was synced", disk.survivors(None, keep_names=False)),
                ("all names, synced contents", disk.survivors(None, keep_names=True)),
                ("a random part", disk.survivors(chance, keep_names=False)),
            ):
                identity = hash(frozenset(survivors.items()))
                if identity not in seen:
                    seen.add(identity)
                    yield f"operation {i} ({operation.name}), {name}", survivors


@pytest.mark.parametrize(
    "every",
    [
        pytest.param(5, id="some outcomes"),
        pytest.param(1, id="every outcome", marks=pytest.mark.slow),
    ],
)
def test_after_a_power_cut_at_any_operation_the_cache_opens_and_the_build_continues(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 5)
    work = tmp_path / "work"
    work.mkdir()

    def run() -> None:
        # A rejected row and its second attempt, too: another commit of the same unit.
        broken = corpus / "img004.png"
        good = broken.read_bytes()
        stat = broken.stat()
        broken.write_bytes(good[: len(good) // 2])
        os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        build_in(work / "cache")
        broken.write_bytes(good)
        os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        build_in(work / "cache", retry_rejected=True)

    def build_in(cache: Path, **settings: bool) -> None:
        config = config_of(corpus, cache, tiny_checkpoint, shard_rows=2, keep_pixels=32, **settings)
        build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())

    with spying(Recorder(work)) as recorder:
        run()
    assert isinstance(recorder, Recorder)
    expected_values = open_cache(work / "cache").image_targets().read(np.arange(5))
    num_outcomes = 0
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no second power cut comes
    for where, survivors in itertools.islice(Outcomes(recorder), 0, None, every):
        num_outcomes += 1
        revived = tmp_path / "revived" / str(num_outcomes)
        for path, data in survivors.items():
            (revived / path).parent.mkdir(parents=True, exist_ok=True)
            (revived / path).write_bytes(data)
        revived.mkdir(parents=True, exist_ok=True)
        try:
            assert_sound_so_far(revived / "cache", expected_values)
            build_in(revived / "cache", retry_rejected=True)
            cache = open_cache(revived / "cache")
            assert verify_cache(cache).faults == []
            values = cache.image_targets().read(np.arange(5))
            np.testing.assert_array_equal(values, expected_values)
            kept = cache.kept_pixels()
            assert kept is not None
            assert kept.num_images == 5
            assert not [p for p in cache.files.walk() if layout.is_garbage_name(p)]
        except Exception as error:
            raise AssertionError(f"after a power cut at {where}: {error}") from error
    assert num_outcomes > 100 / every


def test_after_a_power_cut_at_any_operation_a_conversion_continues(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, source = write_folder_corpus(tmp_path / "corpus", 4), tmp_path / "source"
    (corpus / "img003.png").write_bytes(b"no image")
    config = config_of(corpus, source, tiny_checkpoint, shard_rows=2, keep_pixels=32)
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    work = tmp_path / "work"
    work.mkdir()

    def convert_to(out: Path) -> dict[str, bytes]:
        convert_cache(open_cache(source), out, targets="int8", budget=0.01)
        return tree_of(out)

    with spying(Recorder(work)) as recorder:
        expected = convert_to(work / "cache")
    assert isinstance(recorder, Recorder)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no second power cut comes
    num_outcomes = 0
    for where, survivors in Outcomes(recorder):
        num_outcomes += 1
        revived = tmp_path / "revived" / str(num_outcomes)
        for path, data in survivors.items():
            (revived / path).parent.mkdir(parents=True, exist_ok=True)
            (revived / path).write_bytes(data)
        revived.mkdir(parents=True, exist_ok=True)
        assert convert_to(revived / "cache") == expected, f"after a power cut at {where}"
    assert num_outcomes > 50
    assert verify_cache(open_cache(work / "cache")).faults == []


def assert_sound_so_far(folder: Path, expected: np.ndarray) -> None:
    try:
        cache = open_cache(folder)
    except NotACacheError:
        return
    for teacher in cache.teachers:
        targets = cache.image_targets(teacher)
        rows = targets.available_rows()
        np.testing.assert_array_equal(targets.read(rows), expected[rows])
        assert cache.commits(teacher).damaged == []
    is_to_come = ("are not embedded yet", "are not kept yet", "the cache has no teacher")
    faults = verify_cache(cache).faults
    assert [fault for fault in faults if not any(text in fault for text in is_to_come)] == []


def test_every_write_to_a_cache_goes_through_the_files_that_are_recorded(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    opened: list[str] = []

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int):
            path, flags = str(arguments[0]), arguments[2]
            if path.startswith(str(tmp_path / "cache")) and flags & (os.O_WRONLY | os.O_RDWR):
                opened.append(path)

    sys.addaudithook(audit)
    with spying(Recorder(tmp_path)) as recorder:
        config = config_of(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=2)
        build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    assert isinstance(recorder, Recorder)
    created = [o.arguments[0] for o in recorder.operations if o.name == "create"]
    assert sorted(opened) == sorted(str(tmp_path / path) for path in created)
    assert len(opened) > 10


# -- two builds at once


def test_two_builds_at_once_with_different_bytes_leave_records_that_fit_the_files(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 30)
    for attempt in range(3):
        cache = tmp_path / f"cache{attempt}"
        command = [sys.executable, RUN_BUILD, corpus, cache, tiny_checkpoint, "--shard-rows", "2"]
        builds = [
            Process(
                [*command, "--noise", seed, "--views", "1"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for seed in (1, 2)
        ]
        for each in builds:
            _, errors = each.communicate(timeout=PATIENCE_S)
            assert each.returncode == 0, errors
        opened = open_cache(cache)
        assert verify_cache(opened).faults == []
        assert opened.num_samples == 30
        assert opened.samples().collect()["key"].n_unique() == 30


# -- a torn record, a full disk


def test_a_torn_commit_record_costs_its_unit_and_nothing_else(
    corpus: Path,
    tiny_checkpoint: Path,
    undisturbed: tuple[dict[str, bytes], int],
    tmp_path: Path,
) -> None:
    expected, _ = undisturbed
    assert run_build(corpus, tmp_path / "cache", tiny_checkpoint).returncode == 0
    [teacher] = open_cache(tmp_path / "cache").teachers
    record = tmp_path / "cache" / layout.unit_record(teacher, "image", 1)
    record.write_bytes(record.read_bytes()[:100])
    torn = open_cache(tmp_path / "cache")
    assert torn.image_targets().available([3, 4, 7, 8]).tolist() == [True, False, False, True]
    assert any("not a complete record (100 bytes)" in f for f in verify_cache(torn).faults)
    assert run_build(corpus, tmp_path / "cache", tiny_checkpoint).returncode == 0
    mended = open_cache(tmp_path / "cache")
    assert verify_cache(mended).faults == []
    assert mended.image_targets().available(np.arange(14)).all()
    shard = layout.shard(teacher, "image", 1)
    assert mended.files.read(shard) == expected[shard]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_stops_the_build_with_one_line_and_loses_nothing(
    corpus: Path, tiny_checkpoint: Path, small_disk: Path, tmp_path: Path
) -> None:
    config = config_of(corpus, small_disk / "cache", tiny_checkpoint, shard_rows=4)
    ballast = small_disk / "ballast"

    def fill() -> None:
        if not ballast.exists():
            with ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"0" * 512)
                except OSError:
                    return

    with pytest.raises(OSError, match=r"no space left on the disk of .*run the same command"):
        build(config, progress=SilentProgress(fill), make_teacher=lambda *_: FakeTeacher())
    before = open_cache(small_disk / "cache")
    assert before.image_targets().available([0, 1, 2, 3]).all()
    ballast.unlink()
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    assert verify_cache(open_cache(small_disk / "cache")).faults == []
    build(
        config_of(corpus, tmp_path / "other", tiny_checkpoint, shard_rows=4),
        progress=SilentProgress(),
        make_teacher=lambda *_: FakeTeacher(),
    )
    assert tree_of(small_disk / "cache") == tree_of(tmp_path / "other")


def test_a_disk_too_small_is_refused_before_the_first_batch(
    tiny_checkpoint: Path, small_disk: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 40)
    teacher = FakeTeacher()
    config = config_of(corpus, small_disk / "cache", tiny_checkpoint, num_views=200)
    with pytest.raises(OSError, match=r"has .* free and this build writes 1\.\d MB; free some"):
        build(config, progress=SilentProgress(), make_teacher=lambda *_: teacher)
    assert teacher.image_batches == []


def test_records_are_json_that_any_program_reads(
    undisturbed: tuple[dict[str, bytes], int],
) -> None:
    expected, _ = undisturbed
    records = [json.loads(data) for path, data in expected.items() if path.endswith(".json")]
    assert sum("checksum" in record for record in records) >= 10
