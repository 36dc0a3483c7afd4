"""The rank of a process, waiting for rank 0, and which units of other ranks it takes."""

from pathlib import Path

import pytest

from siglip2_cache.errors import BuildError, SettingError
from siglip2_cache.precompute import ranks
from siglip2_cache.precompute.executor.unit import Job
from siglip2_cache.precompute.executor.work_stealing import WorkStealing
from siglip2_cache.precompute.ranks import ProcessRank, find_rank, wait_for_rank_0
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.layout import Modality
from siglip2_cache.store.format.manifest import Span, Unit
from siglip2_cache.store.format.unit_records import UnitRecord
from siglip2_cache.store.io.local import LocalStorage

SRUN = {"SLURM_STEP_ID": "0"}
SLURM_ARRAY = {
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_ARRAY_TASK_MIN": "3",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "1",
}


@pytest.mark.parametrize(
    ("asked", "environ", "expected"),
    [
        (None, {}, None),
        ("2/8", {}, "2/8"),
        ("0/1", {"RANK": "3", "WORLD_SIZE": "4"}, None),
        (None, {"RANK": "3", "WORLD_SIZE": "4"}, "3/4"),
        (None, {"RANK": "0", "WORLD_SIZE": "1"}, None),
        (None, {**SRUN, "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, "1/4"),
        (None, {"RANK": "5", "WORLD_SIZE": "6", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "5/6"),
        (None, SLURM_ARRAY, "2/4"),
        (None, {**SLURM_ARRAY, **SRUN, "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "5/8"),
        (None, {**SLURM_ARRAY, "SLURM_NTASKS": "2"}, "2/4"),  # sbatch without srun: one process
        ("1/2", SLURM_ARRAY, "1/2"),
    ],
)
def test_a_process_finds_its_rank(
    asked: str | None, environ: dict[str, str], expected: str | None
) -> None:
    rank = find_rank(asked, environ)
    assert (None if rank is None else str(rank)) == expected


def test_the_local_rank_is_found_for_the_gpu() -> None:
    rank = find_rank(None, {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"})
    assert rank is not None
    assert rank.local_rank == 1
    rank = find_rank("9/16", {"SLURM_LOCALID": "3"})
    assert rank is not None
    assert rank.local_rank == 3


@pytest.mark.parametrize(
    ("asked", "environ", "message"),
    [
        ("8/8", {}, r"--share gives rank 8 of 8; ranks of 8 are 0 to 7"),
        ("1", {}, r"share '1' is not RANK/WORLD_SIZE, such as 0/8 \(the first\) to 7/8"),
        ("-1/2", {}, r"share '-1/2' is not RANK/WORLD_SIZE"),
        ("0/0", {}, r"share '0/0' is not RANK/WORLD_SIZE"),
        (None, {"RANK": "4", "WORLD_SIZE": "4"}, r"RANK and WORLD_SIZE gives rank 4 of 4"),
        (
            None,
            {**SLURM_ARRAY, "SLURM_ARRAY_TASK_ID": "8"},
            r"the rank of task 8 of this Slurm array is unknown.* with --share RANK/4",
        ),
    ],
)
def test_what_is_no_rank_is_refused(
    asked: str | None, environ: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        find_rank(asked, environ)


SECOND = ProcessRank(rank=1, world_size=2)


def test_every_unit_belongs_to_one_rank() -> None:
    all_ranks = [ProcessRank(rank=i, world_size=3) for i in range(3)]
    for unit in range(10):
        assert [rank.owns(unit) for rank in all_ranks].count(True) == 1


def test_a_rank_that_waits_in_vain_says_for_what_and_what_to_do() -> None:
    with pytest.raises(
        BuildError,
        match=r"^rank 1/2 waited 0 s for rank 0 to plan; check the output of rank 0.*--share-wait",
    ):
        wait_for_rank_0(lambda: None, what="plan", rank=SECOND, timeout_s=0.05)


def test_a_rank_that_waits_continues_when_it_sees_the_plan() -> None:
    seen = iter([None, "plan"])
    assert wait_for_rank_0(lambda: next(seen), what="plan", rank=SECOND, timeout_s=60) == "plan"


def test_a_rank_that_waits_says_so_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """An element of a Slurm array whose siblings were never started."""
    now, said = [0.0], list[str]()
    monkeypatch.setattr(ranks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ranks.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    rank = ProcessRank(rank=3, world_size=8, source="Slurm")
    with pytest.raises(BuildError, match="rank 3/8 waited 1 h"):
        wait_for_rank_0(lambda: None, what="plan", rank=rank, timeout_s=3600, say=said.append)
    assert 5 <= len(said) <= 7
    assert said[0].startswith("rank 3/8 (from Slurm) has waited 1 min")
    assert said[0].endswith("if this process is alone, stop it and use --share 0/1")


# -- units of other ranks


def job(number: int, modality: Modality = "image", previous: UnitRecord | None = None) -> Job:
    unit = Unit(modality=modality, number=number, rows=Span(first=4 * number, count=4))
    return Job(unit, 0, 2, previous=previous)


def commit(cache: Path, number: int) -> None:
    record = cache / layout.unit_record("tiny", "image", number)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("")


def stealing(
    cache: Path, jobs: list[Job], rank: int, world_size: int, taken: list[int]
) -> WorkStealing:
    return WorkStealing(
        LocalStorage(cache),
        "tiny",
        jobs,
        ProcessRank(rank=rank, world_size=world_size),
        lambda job: taken.append(job.unit.number),
    )


def test_a_rank_takes_first_what_its_owner_reaches_last_and_each_unit_once(tmp_path: Path) -> None:
    taken: list[int] = []
    steal = stealing(tmp_path, [job(2 * i) for i in range(8)], 1, 2, taken)
    first = steal(set())
    assert [j.unit.number for j in first] == taken
    assert taken[0] in (8, 10, 12, 14)
    while steal(set()):
        pass
    assert sorted(taken) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_rank_skips_what_is_committed_or_in_work_here(tmp_path: Path) -> None:
    taken: list[int] = []
    steal = stealing(tmp_path, [job(0), job(2), job(4)], 1, 2, taken)
    commit(tmp_path, 4)
    [found] = steal({("image", 0)})
    assert found.unit.number == 2
    commit(tmp_path, 2)
    commit(tmp_path, 0)
    assert steal(set()) == []


def test_a_rank_skips_what_was_committed_after_it_listed_the_records(tmp_path: Path) -> None:
    taken: list[int] = []
    steal = stealing(tmp_path, [job(2 * i) for i in range(8)], 1, 2, taken)
    steal(set())
    for number in (8, 10, 12, 14):
        commit(tmp_path, number)
    while steal(set()):
        pass
    assert sorted(taken[1:]) == [0, 2, 4, 6]


def test_the_records_are_listed_a_few_times_and_not_once_for_each_unit(tmp_path: Path) -> None:
    class CountingFiles(LocalStorage):
        num_listings = 0

        def names(self, folder: str) -> list[str]:
            CountingFiles.num_listings += 1
            return super().names(folder)

    jobs = [job(2 * i) for i in range(1000)]
    steal = WorkStealing(CountingFiles(tmp_path), "tiny", jobs, SECOND, lambda _: None)
    while steal(set()):
        pass
    assert CountingFiles.num_listings <= 12


def test_a_rank_leaves_rejected_rows_to_their_owner(tmp_path: Path) -> None:
    previous = UnitRecord(
        modality="image",
        unit=0,
        attempt=0,
        num_rows=4,
        rejected={1: "gone"},
        files={},
        batch_size=2,
        provenance={},
    )
    steal = stealing(tmp_path, [job(0, previous=previous)], 1, 2, [])
    assert steal(set()) == []


def test_ranks_rarely_take_the_same_unit(tmp_path: Path) -> None:
    jobs = [job(number) for number in range(0, 1000, 5)]  # all of rank 0 of 5
    taken: list[int] = []
    for rank in (1, 2, 3, 4):
        stealing(tmp_path, jobs, rank, 5, taken)(set())
    assert len(set(taken)) == 4
