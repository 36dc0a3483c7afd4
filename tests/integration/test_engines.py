"""Several workers build one cache: the same bytes as one worker, whoever is killed on the way."""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit.fakes import FakeFactory, SilentProgress, config_of, tree_of, write_folder_corpus
from kit.patience import PATIENCE_S
from kit.processes import Process

from siglip2_cache import open_cache
from siglip2_cache.errors import BuildError, CheckpointError, NotACacheError, SettingError
from siglip2_cache.precompute.build import BuildSummary, build
from siglip2_cache.precompute.executor.local import own_gpu, spread_over_gpus
from siglip2_cache.precompute.ranks import ProcessRank
from siglip2_cache.precompute.teacher.siglip_teacher import load_teacher
from siglip2_cache.store.format import layout
from siglip2_cache.store.verify.verify import verify_cache

RUN_BUILD = Path(__file__).parents[1] / "kit" / "run_build.py"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder_corpus(tmp_path_factory.mktemp("corpus"), 30, captions=2)


def make(
    corpus: Path,
    cache: Path,
    checkpoint: Path,
    *,
    make_teacher: Callable[..., Any] | None = None,
    progress: SilentProgress | None = None,
    **settings: Any,
) -> BuildSummary:
    settings = {"shard_rows": 2, "batch_size": 1, **settings}  # two batches a unit
    return build(
        config_of(corpus, cache, checkpoint, **settings),
        progress=progress or SilentProgress(),
        make_teacher=make_teacher or FakeFactory(),
    )


@pytest.fixture(scope="module")
def alone(
    corpus: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of a build by one worker that nothing disturbed."""
    cache = tmp_path_factory.mktemp("alone") / "cache"
    make(corpus, cache, tiny_checkpoint)
    return tree_of(cache)


def workers_now() -> list[int]:
    return [
        child.pid
        for child in multiprocessing.active_children()
        if child.name.startswith("siglip2-cache-worker") and child.pid is not None
    ]


# -- equal bytes


@pytest.mark.usefixtures("one_thread")
def test_two_workers_make_the_bytes_of_one_with_equal_threads(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 9, captions=2)
    trees: list[dict[str, bytes]] = []
    for workers in (1, 2):
        cache = tmp_path / f"cache{workers}"
        settings = {"workers": workers, "threads": 1, "shard_rows": 4, "num_views": 2}
        settings |= {"make_teacher": load_teacher, "progress": (progress := SilentProgress())}
        # Either worker may make every unit before the other has loaded its teacher.
        assert make(corpus, cache, tiny_checkpoint, **settings).num_images == 9
        assert ("starting 2 workers on cpu" in progress.said) == (workers == 2)
        trees.append(tree_of(cache))
        [unit] = {u.provenance["num_threads"] for u in open_cache(cache).commits().units.values()}
        assert unit == 1
    assert trees[0] == trees[1]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_the_last_unit_of_a_resumed_build_is_computed_in_as_many_threads_as_the_others(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr("siglip2_cache.precompute.config.cores_each", lambda _: 1)
    corpus = write_folder_corpus(tmp_path / "corpus", 2)
    settings: dict[str, Any] = {"make_teacher": load_teacher, "shard_rows": 1, "workers": 2}
    make(corpus, tmp_path / "cache", tiny_checkpoint, **settings)
    expected = tree_of(tmp_path / "cache")
    (tmp_path / "cache" / layout.unit_record(tiny_checkpoint.name, "image", 1)).unlink()
    commits = open_cache(tmp_path / "cache").commits()
    assert {unit.provenance["num_threads"] for unit in commits.units.values()} == {1}
    torch.set_num_threads(2)
    progress = SilentProgress()
    make(corpus, tmp_path / "cache", tiny_checkpoint, progress=progress, **settings)
    assert not [said for said in progress.said if "starting" in said]  # one unit: this process
    assert tree_of(tmp_path / "cache") == expected
    assert torch.get_num_threads() == 2


def test_each_worker_computes_in_its_share_of_the_cores_and_says_so(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siglip2_cache.precompute.config.cores_each", lambda _: 3)
    telling, before = FakeFactory(tells_threads=True), os.environ.get("OMP_NUM_THREADS")
    make(corpus, tmp_path / "cache", tiny_checkpoint, make_teacher=telling, workers=2)
    commits = open_cache(tmp_path / "cache").commits()
    assert {u.provenance["threads"] for u in commits.units.values()} == {"OpenMP 3, torch 3"}
    assert os.environ.get("OMP_NUM_THREADS") == before


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected"),
    [
        ("auto", 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", 1, ["cuda:0", "cuda:0", "cuda:0"]),
        ("cuda:1", 2, ["cuda:1", "cuda:1", "cuda:1"]),
        ("cpu", 2, ["cpu", "cpu", "cpu"]),
        ("auto", 0, ["cpu", "cpu", "cpu"]),
    ],
)
def test_workers_are_spread_over_the_gpus_unless_one_was_named(
    device: str, num_gpus: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, num_gpus)
    assert spread_over_gpus(device, 3) == expected


@pytest.mark.parametrize(
    ("device", "num_gpus", "local_index", "expected"),
    [
        ("auto", 4, 2, "cuda:2"),
        ("auto", 1, 2, "auto"),  # Slurm shows each task its own GPU alone
        ("auto", 0, 2, "auto"),
        ("auto", 4, None, "auto"),
        ("cuda:1", 4, 2, "cuda:1"),
    ],
)
def test_each_share_of_a_machine_takes_the_gpu_of_its_number(
    device: str,
    num_gpus: int,
    local_index: int | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_gpus(monkeypatch, num_gpus)
    assert own_gpu(device, local_index) == expected


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, num_gpus: int) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: num_gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


@pytest.mark.slow
def test_all_progress_is_shown_in_one_place(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    progress = SilentProgress()
    summary = make(corpus, tmp_path / "cache", tiny_checkpoint, progress=progress, workers=3)
    assert progress.tally.done == progress.tally.totals == {"image": 30, "text": 40}
    assert progress.tally.units_done == progress.tally.units == {"image": 15, "text": 20}
    assert (summary.num_images, summary.num_texts, summary.num_units) == (30, 40, 35)
    assert (summary.image_batch, summary.text_batch) == (1, 1)
    assert summary.times.forward_s > 0
    assert workers_now() == []


# -- kills


def test_workers_that_are_killed_are_replaced_and_their_units_made_again(
    corpus: Path, tiny_checkpoint: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    chance, killed = random.Random(0), set[int]()
    num_units = 0

    def on_unit() -> None:
        nonlocal num_units
        num_units += 1
        if num_units % 8 == 4 and len(killed) < 4:
            pid = chance.choice(workers_now())
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)

    progress = SilentProgress(on_unit)
    slow = FakeFactory(seconds_a_batch=0.03)
    summary = make(
        corpus, tmp_path / "cache", tiny_checkpoint, make_teacher=slow, progress=progress, workers=2
    )
    assert len(killed) == 4
    warnings = [said for said in progress.said if "(killed by SIGKILL)" in said]
    assert len(warnings) == 4  # one more says so if three in a row were still loading
    assert tree_of(tmp_path / "cache") == alone
    assert progress.tally.done == progress.tally.totals
    assert summary.num_units <= 35  # a unit that was committed as its worker died counts for nobody


def test_workers_leave_signals_to_their_driver(
    corpus: Path, tiny_checkpoint: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    signals = iter([signal.SIGINT, signal.SIGTERM])

    def on_unit() -> None:
        for number in signals:
            for pid in workers_now():
                os.kill(pid, number)

    progress = SilentProgress(on_unit)
    make(corpus, tmp_path / "cache", tiny_checkpoint, progress=progress, workers=2)
    assert next(signals, None) is None
    assert not [said for said in progress.said if "died" in said]
    assert tree_of(tmp_path / "cache") == alone


def start_build(corpus: Path, cache: Path, checkpoint: Path, *options: object) -> Any:
    command = [sys.executable, RUN_BUILD, corpus, cache, checkpoint, "--shard-rows", 2]
    fixed = ["--views", 1, "--batch-size", 1, *options]
    pipe = subprocess.PIPE
    return Process([*command, *fixed], stdout=pipe, stderr=pipe, start_new_session=True)


def damages(cache: Path) -> list[str]:
    """Return what is wrong with a cache, but that some units are not embedded yet."""
    faults = verify_cache(open_cache(cache)).faults
    return [fault for fault in faults if "not embedded yet" not in fault]


def family(process: Any) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def workers_of(process: Any) -> list[psutil.Process]:
    """Return the workers of a driver that have not ended."""
    found: list[psutil.Process] = []
    for child in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended as it was looked at
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def await_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert alive == [], "processes outlive their driver"


def test_when_the_driver_is_killed_its_workers_end_and_a_rerun_goes_on(
    corpus: Path, tiny_checkpoint: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    for _ in range(2):
        # Each worker makes six units or seven of the 35, and is in a batch as its driver dies.
        options = ["--workers", 2, "--quick", 14, "--seconds", PATIENCE_S]
        process = start_build(corpus, tmp_path / "cache", tiny_checkpoint, *options)
        for _ in range(5):
            assert process.stdout.readline() == "unit\n"
        children = family(process)
        assert len(children) >= 2
        process.kill()
        process.communicate()
        await_end(children)
        assert damages(tmp_path / "cache") == []
    make(corpus, tmp_path / "cache", tiny_checkpoint, workers=2)
    assert tree_of(tmp_path / "cache") == alone


@pytest.mark.slow
def test_workers_do_not_outlive_their_driver_though_they_are_in_a_long_batch(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = ["--workers", 2, "--seconds", PATIENCE_S, "--say-start"]
    process = start_build(corpus, tmp_path / "cache", tiny_checkpoint, *options)
    assert process.stdout.readline() == "started\n"
    children = family(process)
    assert len(children) >= 2
    process.kill()
    process.communicate()
    await_end(children)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_whole_group_stops_all_after_the_batch_at_hand(
    number: signal.Signals,
    corpus: Path,
    tiny_checkpoint: Path,
    alone: dict[str, bytes],
    tmp_path: Path,
) -> None:
    # Some ten units quickly; the others would take a minute.
    options = ["--workers", 2, "--quick", 10, "--seconds", 2]
    process = start_build(corpus, tmp_path / "cache", tiny_checkpoint, *options)
    for _ in range(3):
        assert process.stdout.readline() == "unit\n"
    children = family(process)
    os.killpg(process.pid, number)  # as a terminal and a batch system do
    _, errors = process.communicate(timeout=PATIENCE_S)
    await_end(children)
    assert "BuildInterrupted: stopped; finished units are kept" in errors
    assert "died" not in errors
    stopped = open_cache(tmp_path / "cache")
    assert 3 <= len(stopped.commits().units) < 35
    assert damages(tmp_path / "cache") == []
    make(corpus, tmp_path / "cache", tiny_checkpoint, workers=2)
    assert tree_of(tmp_path / "cache") == alone


@pytest.mark.slow
def test_a_unit_that_kills_its_worker_three_times_ends_the_build_and_the_others_are_kept(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    deadly = FakeFactory(deadly_text="Picture 3 as seen 1")
    texts = 40
    with pytest.raises(BuildError, match=r"^text unit \d+ \(rows \d+\.\.\d+\) crashed 3"):
        make(corpus, tmp_path / "cache", tiny_checkpoint, make_teacher=deadly, workers=2)
    cache = open_cache(tmp_path / "cache")
    assert len(cache.commits().units_of("image")) == 15
    row = cache.texts().collect()["text"].to_list().index("Picture 3 as seen 1")
    missing = set(range(texts // 2)) - set(cache.commits().units_of("text"))
    assert row // 2 in missing
    assert len(missing) <= 5  # that one, and what was blamed with it


# -- ranks


def test_shares_that_start_together_make_the_cache_of_one_process(
    corpus: Path, tiny_checkpoint: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    shares = [
        start_build(
            corpus, tmp_path / "cache", tiny_checkpoint, "--share", f"{i}/3", "--seconds", 0.05
        )
        for i in (2, 1, 0)
    ]
    for share in shares:
        _, errors = share.communicate(timeout=PATIENCE_S)
        assert share.returncode == 0, errors
    assert tree_of(tmp_path / "cache") == alone


def test_a_share_makes_its_own_units_then_those_of_shares_that_never_came(
    corpus: Path, tiny_checkpoint: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    progress = SilentProgress()
    rank = ProcessRank(rank=0, world_size=3)
    make(corpus, tmp_path / "cache", tiny_checkpoint, progress=progress, rank=rank)
    said = "\n".join(progress.said)
    assert "rank 0/3 (from --share): 12 units of 35" in said
    helped = [line for line in progress.said if line.startswith("helping with ")]
    assert len(helped) == 23
    assert progress.tally.done == progress.tally.totals == {"image": 30, "text": 40}
    assert tree_of(tmp_path / "cache") == alone


def test_the_other_shares_see_what_is_new_in_the_corpus(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 4)
    make(corpus, tmp_path / "cache", tiny_checkpoint)
    write_folder_corpus(corpus, 4, first=4)
    late = {"rank": ProcessRank(rank=1, world_size=2), "plan_timeout_s": 0.1}
    with pytest.raises(BuildError, match=r"^rank 1/2 waited 0 s for rank 0 to plan and add"):
        make(corpus, tmp_path / "cache", tiny_checkpoint, **late)
    make(corpus, tmp_path / "cache", tiny_checkpoint, rank=ProcessRank(rank=0, world_size=2))
    summary = make(corpus, tmp_path / "cache", tiny_checkpoint, **late)
    assert summary.num_units == 0
    assert open_cache(tmp_path / "cache").image_targets().available([0, 7]).all()


def test_finishing_says_what_is_missing_or_clears_up_and_loads_no_teacher(
    corpus: Path, tiny_checkpoint: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    def no_teacher(*_: object) -> Any:
        raise AssertionError("a teacher was loaded")

    def finish() -> BuildSummary:
        cache = tmp_path / "cache"
        return make(corpus, cache, tiny_checkpoint, make_teacher=no_teacher, finish=True)

    with pytest.raises(NotACacheError, match="no cache at"):
        finish()
    for path, data in alone.items():
        (tmp_path / "cache" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / path).write_bytes(data)
    commits = tmp_path / "cache" / layout.commits_folder(tiny_checkpoint.name)
    for name in ("image-00003.json", "text-00001.json", "text-00004.json"):
        (commits / name).rename(tmp_path / name)
    with pytest.raises(
        BuildError,
        match=r"is not finished: 1 of 15 image units are missing \(3\) and 2 of 20 text units are "
        r"missing \(1, 4\); restart the ranks that ended early",
    ):
        finish()
    for name in ("image-00003.json", "text-00001.json", "text-00004.json"):
        (tmp_path / name).rename(commits / name)
    (commits / "image-00003.json.intent.0123456789ab.partial").write_bytes(b"left behind")
    assert finish().num_units == 0
    assert tree_of(tmp_path / "cache") == alone


# -- errors


def test_an_error_of_a_worker_is_the_builds(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    error = CheckpointError("the weights are gone")
    with pytest.raises(CheckpointError, match=r"^the weights are gone$"):
        make(
            corpus,
            tmp_path / "cache",
            tiny_checkpoint,
            make_teacher=FakeFactory(fails_to_load=error),
            workers=2,
        )
    assert workers_now() == []


def test_a_bug_in_a_worker_comes_with_its_traceback(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    broken = FakeFactory(fails_to_load=ZeroDivisionError("oh"))
    with pytest.raises(ZeroDivisionError, match="oh") as raised:
        make(corpus, tmp_path / "cache", tiny_checkpoint, make_teacher=broken, workers=2)
    assert "in __call__" in "".join(raised.value.__notes__)


@pytest.mark.slow
def test_workers_that_die_as_they_load_the_teacher_are_not_replaced_for_ever(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    progress = SilentProgress()
    with pytest.raises(BuildError, match=r"^no worker is left"):
        make(
            corpus,
            tmp_path / "cache",
            tiny_checkpoint,
            make_teacher=FakeFactory(is_killed_as_it_loads=True),
            progress=progress,
            workers=2,
        )
    died = [
        said for said in progress.said if "while loading the teacher (killed by SIGKILL)" in said
    ]
    assert 3 <= len(died) <= 6  # three in a row, which two workers may be at once


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"workers": 0}, "workers must be 1 to 1,024, got 0"), ({"threads": 0}, "threads must be 1")],
)
def test_numbers_of_workers_and_threads_are_checked(
    setting: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        config_of(tmp_path, tmp_path, "teacher", **setting)


# -- many kills


@pytest.mark.slow
def test_twenty_random_kills_of_workers_and_drivers_leave_the_bytes_of_an_undisturbed_build(
    corpus: Path, tiny_checkpoint: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    chance, builds = random.Random(0), 0
    deck = ["worker"] * 14 + ["driver"] * 6
    chance.shuffle(deck)
    while deck:
        builds += 1
        cache = tmp_path / f"cache{builds}"
        while True:
            process = start_build(corpus, cache, tiny_checkpoint, "--workers", 3, "--seconds", 0.05)
            is_driver_killed = False
            while process.stdout.readline() == "unit\n" and not is_driver_killed:
                if not deck or chance.random() < 0.6:
                    continue
                time.sleep(chance.uniform(0, 0.3))  # any moment
                victims = [process] if deck[-1] == "driver" else workers_of(process)
                with contextlib.suppress(psutil.NoSuchProcess, IndexError):  # it has just ended
                    chance.choice(victims).kill()
                    is_driver_killed = deck.pop() == "driver"
            _, errors = process.communicate(timeout=PATIENCE_S)
            if process.returncode == 0:
                break
            assert is_driver_killed or "crashed 3 workers" in errors, errors
        assert tree_of(cache) == alone
