"""Which share of a build a process has, what it waits for and whom it helps."""

from pathlib import Path

import pytest

from siglip2_cache.errors import BuildError, SettingError
from siglip2_cache.precompute import shares
from siglip2_cache.precompute.executor.helper import Helper
from siglip2_cache.precompute.executor.unit import Job
from siglip2_cache.precompute.shares import Share, find_share, wait_for
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
def test_a_process_finds_its_share(
    asked: str | None, environ: dict[str, str], expected: str | None
) -> None:
    share = find_share(asked, environ)
    assert (None if share is None else str(share)) == expected


def test_the_number_on_the_machine_is_found_for_the_gpu() -> None:
    share = find_share(None, {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"})
    assert share is not None
    assert share.local_index == 1
    share = find_share("9/16", {"SLURM_LOCALID": "3"})
    assert share is not None
    assert share.local_index == 3


@pytest.mark.parametrize(
    ("asked", "environ", "message"),
    [
        ("8/8", {}, r"--share says share 8/8; shares of 8 are 0/8 to 7/8"),
        ("1", {}, r"share '1' is not i/n, the first 0/n, such as 0/8 to 7/8"),
        ("-1/2", {}, r"share '-1/2' is not i/n"),
        ("0/0", {}, r"share '0/0' is not i/n"),
        (None, {"RANK": "4", "WORLD_SIZE": "4"}, r"RANK and WORLD_SIZE says share 4/4"),
        (
            None,
            {**SLURM_ARRAY, "SLURM_ARRAY_TASK_ID": "8"},
            r"task 8 of this Slurm array cannot be counted .* with --share i/4",
        ),
    ],
)
def test_what_is_no_share_is_refused(
    asked: str | None, environ: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        find_share(asked, environ)


def test_every_unit_belongs_to_one_share() -> None:
    shares = [Share(index=i, count=3) for i in range(3)]
    for unit in range(10):
        assert [share.owns(unit) for share in shares].count(True) == 1


def test_a_share_that_waits_in_vain_says_for_what_and_what_to_do() -> None:
    with pytest.raises(
        BuildError,
        match=r"^share 1/2 waited 0 s for share 0/2 to plan; see what that one says.*--share-wait",
    ):
        wait_for(lambda: None, what="plan", share=Share(index=1, count=2), timeout_s=0.05)


def test_a_share_that_waits_goes_on_when_it_sees_the_plan() -> None:
    seen = iter([None, "plan"])
    share = Share(index=1, count=2)
    assert wait_for(lambda: next(seen), what="plan", share=share, timeout_s=60) == "plan"


def test_a_share_that_waits_says_so_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """An element of a Slurm array whose siblings were never started."""
    now, said = [0.0], list[str]()
    monkeypatch.setattr(shares.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(shares.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    share = Share(index=3, count=8, told_by="Slurm")
    with pytest.raises(BuildError, match="share 3/8 waited 1 h"):
        wait_for(lambda: None, what="plan", share=share, timeout_s=3600, say=said.append)
    assert 5 <= len(said) <= 7
    assert said[0].startswith("share 3/8 (of Slurm) has waited 1 min")
    assert said[0].endswith("does that one run? If this one is alone, stop it and say --share 0/1")


# -- helping


def job(number: int, modality: Modality = "image", previous: UnitRecord | None = None) -> Job:
    unit = Unit(modality=modality, number=number, rows=Span(first=4 * number, count=4))
    return Job(unit, 0, 2, previous=previous)


def commit(cache: Path, number: int) -> None:
    record = cache / layout.unit_record("tiny", "image", number)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("")


def helper_of(cache: Path, jobs: list[Job], index: int, count: int, helped: list[int]) -> Helper:
    return Helper(
        LocalStorage(cache),
        "tiny",
        jobs,
        Share(index=index, count=count),
        lambda job: helped.append(job.unit.number),
    )


def test_a_helper_takes_what_its_owner_comes_to_late_and_each_unit_once(tmp_path: Path) -> None:
    helped: list[int] = []
    helper = helper_of(tmp_path, [job(2 * i) for i in range(8)], 1, 2, helped)
    first = helper(set())
    assert [j.unit.number for j in first] == helped
    assert helped[0] in (8, 10, 12, 14)
    while helper(set()):
        pass
    assert sorted(helped) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_helper_passes_over_what_is_committed_or_in_work_here(tmp_path: Path) -> None:
    helped: list[int] = []
    helper = helper_of(tmp_path, [job(0), job(2), job(4)], 1, 2, helped)
    commit(tmp_path, 4)
    [found] = helper({("image", 0)})
    assert found.unit.number == 2
    commit(tmp_path, 2)
    commit(tmp_path, 0)
    assert helper(set()) == []


def test_a_helper_leaves_rejected_rows_to_their_owner(tmp_path: Path) -> None:
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
    helper = helper_of(tmp_path, [job(0, previous=previous)], 1, 2, [])
    assert helper(set()) == []


def test_helpers_seldom_meet(tmp_path: Path) -> None:
    jobs = [job(number) for number in range(0, 1000, 5)]  # all of share 0 of 5
    helped: list[int] = []
    for index in (1, 2, 3, 4):
        helper_of(tmp_path, jobs, index, 5, helped)(set())
    assert len(set(helped)) == 4
