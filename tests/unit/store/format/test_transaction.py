"""The commit protocol under every kind of race: many processes, any order, any of them dying.

Each process is a thread. It does one operation on the disk at a time, and only when a scheduler with a
seed says so, so a schedule that fails can be run again.
"""

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.crashes import Spy, spying

from siglip2_cache.errors import DamagedCacheError
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.records import decode_record, sha256_hex
from siglip2_cache.store.format.transaction import (
    Transaction,
    clear_garbage,
    intent_path,
    roll_forward,
)
from siglip2_cache.store.io.local import LocalStorage

RECORD = layout.unit_record("t", "image", 0)
AGAIN = layout.unit_record("t", "image", 0, 1)
PATHS = (layout.shard("t", "image", 0), layout.images_part("t", 0))


class Died(BaseException):
    """The process of this thread was killed."""


class Process:
    """A thread that waits for its turn before every operation."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._turn, self._parked = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.is_done = False
        self.is_dying = False
        self.error: BaseException | None = None
        PROCESSES[self._thread] = self
        self._thread.start()
        self._parked.acquire()

    def advance(self, *, die: bool = False) -> None:
        """Let it do one operation, or make it die instead, and wait for it to stop again."""
        self.is_dying = die
        self._turn.release()
        self._parked.acquire()

    def pause(self) -> None:
        """Wait for a turn. Called in the thread."""
        if self.is_dying:
            raise Died
        self._parked.release()
        self._turn.acquire()

    def _run(self) -> None:
        try:
            self.pause()
            if not self.is_dying:
                self._work()
        except Died:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.is_done = True
            del PROCESSES[self._thread]
            self._parked.release()


PROCESSES: dict[threading.Thread, Process] = {}


class Disk(Spy):
    """Takes turns at each single system call; a process may die in the middle of a write."""

    takes_turns = True

    def fsync(self, descriptor: int) -> None:
        """Not what is tested here, and slow."""

    def _do(self, name: str, act: Any, *arguments: Any) -> Any:
        process = PROCESSES.get(threading.current_thread())
        if process is None or not self.takes_turns:
            return act()
        process.pause()
        if process.is_dying:
            if name == "write":
                os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise Died
        return act()


class DiskWithoutLinks(Disk):
    """No hard links, as on exFAT; takes turns at whole operations of LocalStorage (TurnFiles)."""

    takes_turns = False

    def link(self, source: Any, target: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")


class TurnFiles(LocalStorage):
    """Takes turns at what Disk does not see, and, if asked, at every other operation too."""

    def __init__(self, root: Path, *, every_operation: bool) -> None:
        super().__init__(root)
        self._every_operation = every_operation

    def read(self, path: str) -> bytes:
        self._pause()
        return super().read(path)

    def exists(self, path: str) -> bool:
        self._pause()
        return super().exists(path)

    def walk(self) -> Iterator[str]:
        self._pause()
        yield from list(super().walk())

    def write(self, path: str, data: Any) -> None:
        self._pause(self._every_operation)
        super().write(path, data)

    def rename(self, source: str, target: str) -> bool:
        self._pause(self._every_operation)
        return super().rename(source, target)

    def create(self, path: str, data: bytes, *, token: str) -> bool:
        self._pause(self._every_operation)
        return super().create(path, data, token=token)

    def remove(self, path: str) -> None:
        self._pause(self._every_operation)
        super().remove(path)

    def _pause(self, is_wanted: bool = True) -> None:
        process = PROCESSES.get(threading.current_thread())
        if process is not None and is_wanted:
            process.pause()
            if process.is_dying:
                raise Died


class World:
    """Processes at work on one cache, and what must hold at every instant."""

    def __init__(self, root: Path, chance: random.Random, *, has_links: bool) -> None:
        self.files = TurnFiles(root, every_operation=not has_links)
        self.disk = Disk() if has_links else DiskWithoutLinks()
        self.winners: dict[str, list[str]] = {RECORD: [], AGAIN: []}
        self._chance = chance
        self._processes: list[Process] = []

    def commit(self, who: str, record: str = RECORD) -> bool:
        transaction = Transaction(self.files, record)
        for path in PATHS:
            transaction.add(path, f"{who} wrote {path}".encode())
        won = transaction.commit({"who": who})
        assert self.files.exists(record), f"{who} returned from its commit and there is no record"
        if won:
            self.winners[record].append(who)
        return won

    def committer(self, who: str) -> None:
        if not self.files.exists(RECORD):
            self.commit(who)

    def second_attempt(self, who: str) -> None:
        for _ in range(30):
            if self.files.exists(RECORD):
                self.commit(who, AGAIN)
                return

    def roller(self) -> None:
        for record in (RECORD, AGAIN, RECORD):
            roll_forward(self.files, record)

    def collector(self) -> None:
        for _ in range(3):
            clear_garbage(self.files)

    def start(self, *works: Callable[[], None]) -> None:
        self._processes += [Process(work) for work in works]

    def run(self, *, death_rate: float, check: Callable[[], None]) -> None:
        """Let the processes run, each at a speed of its own that changes, until all have ended."""
        alive = list(self._processes)
        speeds: list[float] = []
        while alive:
            if not speeds or self._chance.random() < 0.05:
                speeds = [self._chance.random() ** 6 + 1e-9 for _ in self._processes]
            weights = [speeds[self._processes.index(process)] for process in alive]
            [process] = self._chance.choices(alive, weights)
            process.advance(die=self._chance.random() < death_rate)
            alive = [process for process in alive if not process.is_done]
            check()
        errors = [process.error for process in self._processes if process.error is not None]
        if errors:
            raise errors[0]

    def who_stands(self, record: str) -> str | None:
        """Return whose record it is; every file must be as the record says."""
        try:
            found = decode_record(self.files.read(record), where=record)
        except FileNotFoundError:
            return None
        for path, description in found["files"].items():
            assert sha256_hex(self.files.read(path)) == description["sha256"], (
                f"{path} is not what {record} says"
            )
        return str(found["who"])

    def garbage(self) -> list[str]:
        return [path for path in self.files.walk() if layout.is_garbage_name(path)]

    def recover(self, *records: str) -> str:
        """Do what the next build does; return whose bytes stand in the end."""
        for record in records:
            if not roll_forward(self.files, record):
                assert self.commit("recovery", record)
        clear_garbage(self.files)
        who = self.who_stands(records[-1])
        assert who is not None
        assert set(self.files.walk()) == {*PATHS, *records}
        return who


def run_schedules(tmp_path: Path, count: int, schedule: Callable[[World], None], **kw: Any) -> None:
    for seed in range(count):
        world = World(tmp_path / str(seed), random.Random(seed), **kw)
        with spying(world.disk):
            try:
                schedule(world)
            except Exception as error:
                raise AssertionError(f"schedule {seed}: {error!r}") from error


@pytest.mark.parametrize("has_links", [True, False], ids=["hard links", "no hard links"])
@pytest.mark.parametrize("death_rate", [0.0, 0.03], ids=["all live", "some die"])
def test_one_of_many_wins_and_its_record_fits_the_files_at_every_instant(
    tmp_path: Path, has_links: bool, death_rate: float
) -> None:
    outcomes: set[str] = set()

    def schedule(world: World) -> None:
        stood: set[str] = set()

        def check() -> None:
            if (who := world.who_stands(RECORD)) is not None:
                stood.add(who)

        world.start(
            *(lambda who=who: world.committer(who) for who in ("a", "b", "c")),
            *(world.roller, world.collector, world.collector),
        )
        world.run(death_rate=death_rate, check=check)
        assert death_rate or world.garbage() == []
        stood.add(world.recover(RECORD))
        assert len(stood) == 1, f"the record changed hands: {stood}"
        assert set(world.winners[RECORD]) <= stood
        assert len(world.winners[RECORD]) <= 1
        if not death_rate:
            assert world.winners[RECORD] == list(stood)
            assert stood <= set("abc")
        outcomes.update(stood)

    run_schedules(tmp_path, 60, schedule, has_links=has_links)
    assert {"a", "b", "c"} <= outcomes
    assert ("recovery" in outcomes) == (death_rate > 0)


@pytest.mark.parametrize("has_links", [True, False], ids=["hard links", "no hard links"])
@pytest.mark.parametrize("death_rate", [0.0, 0.03], ids=["all live", "some die"])
def test_a_second_attempt_holds_against_slow_processes_of_the_first(
    tmp_path: Path, has_links: bool, death_rate: float
) -> None:
    outcomes: set[str] = set()

    def schedule(world: World) -> None:
        firsts: set[str] = set()
        seconds: set[str] = set()

        def check() -> None:
            if (second := world.who_stands(AGAIN)) is not None:
                seconds.add(second)
            elif not world.files.exists(intent_path(AGAIN)) and (
                (first := world.who_stands(RECORD)) is not None
            ):
                firsts.add(first)

        world.start(
            *(lambda who=who: world.committer(who) for who in ("a", "b")),
            *(lambda who=who: world.second_attempt(who) for who in ("c", "d")),
            *(world.roller, world.collector),
        )
        world.run(death_rate=death_rate, check=check)
        assert death_rate or world.garbage() == []
        seconds.add(world.recover(RECORD, AGAIN))
        assert len(firsts) <= 1, f"the first record changed hands: {firsts}"
        assert len(seconds) == 1, f"the second record changed hands: {seconds}"
        assert all(len(winners) <= 1 for winners in world.winners.values())
        outcomes.update(firsts, seconds)

    run_schedules(tmp_path, 60, schedule, has_links=has_links)
    assert {"a", "b", "c", "d"} <= outcomes


# --- one process ---------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "cache")


def stage(files: LocalStorage, who: str, record: str = RECORD) -> Transaction:
    transaction = Transaction(files, record)
    for path in PATHS:
        transaction.add(path, f"{who} wrote {path}".encode(), table=who)
    return transaction


def leave_an_intent(files: LocalStorage, who: str = "a") -> None:
    """Commit, up to the instant after the intent was created."""
    transaction = stage(files, who)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("siglip2_cache.store.format.transaction.roll_forward", die)
        with pytest.raises(Died):
            transaction.commit({"who": who})
    assert files.exists(intent_path(RECORD))


def die(*_: object) -> None:
    raise Died


def test_a_commit_leaves_its_files_and_a_record_that_describes_them(files: LocalStorage) -> None:
    assert stage(files, "a").commit({"who": "a"})
    assert set(files.walk()) == {RECORD, *PATHS}
    found = decode_record(files.read(RECORD), where=RECORD)
    assert found["who"] == "a"
    for path in PATHS:
        data = f"a wrote {path}".encode()
        assert files.read(path) == data
        description = {"table": "a", "num_bytes": len(data), "sha256": sha256_hex(data)}
        assert found["files"][path] == description


def test_who_comes_second_adopts_the_first_and_leaves_nothing(files: LocalStorage) -> None:
    second = stage(files, "b")
    assert stage(files, "a").commit({"who": "a"})
    before = {path: files.read(path) for path in (RECORD, *PATHS)}
    assert not second.commit({"who": "b"})
    assert {path: files.read(path) for path in files.walk()} == before


def test_nothing_is_visible_before_the_commit_and_nothing_is_left_when_it_is_given_up(
    files: LocalStorage,
) -> None:
    transaction = stage(files, "a")
    assert all(layout.is_garbage_name(path) for path in files.walk())
    transaction.abandon()
    assert list(files.walk()) == []


def test_an_intent_is_finished_by_whoever_comes_next(files: LocalStorage) -> None:
    leave_an_intent(files)
    assert not stage(files, "b").commit({"who": "b"})
    assert files.read(PATHS[0]).startswith(b"a wrote")
    assert set(files.walk()) == {RECORD, *PATHS}


@pytest.mark.parametrize("num_bytes", [0, 100])
@pytest.mark.parametrize("mend", [lambda files: roll_forward(files, RECORD), clear_garbage])
def test_a_record_that_a_crash_truncated_is_written_again_from_its_intent(
    files: LocalStorage, num_bytes: int, mend: Callable[[LocalStorage], Any]
) -> None:
    """As a kill leaves it where there are no hard links."""
    stage(files, "a").commit({"who": "a"})
    whole = files.read(RECORD)
    for path in PATHS:
        files.remove(path)
    files.remove(RECORD)
    leave_an_intent(files)
    intent = files.read(intent_path(RECORD))
    roll_forward(files, RECORD)
    files.write(intent_path(RECORD), intent)
    files.write(RECORD, whole[:num_bytes])
    mend(files)
    assert files.read(RECORD) == whole
    assert set(files.walk()) == {RECORD, *PATHS}


def test_there_is_nothing_to_roll_forward_without_an_intent(files: LocalStorage) -> None:
    assert not roll_forward(files, RECORD)
    stage(files, "a").commit({})
    assert roll_forward(files, RECORD)


def test_garbage_of_finished_commits_goes_and_that_of_unfinished_ones_stays(
    files: LocalStorage,
) -> None:
    late, unfinished = stage(files, "late"), stage(files, "unfinished", AGAIN)
    stage(files, "a").commit({})
    files.write(f"{RECORD}.{'0' * 12}.partial", b"half a record")
    files.write(f"{intent_path(RECORD)}.{'0' * 12}.partial", b"half an intent")
    files.write(intent_path(RECORD), b"an intent whose record stands")
    files.write("notes.partial", b"not ours: no commit is in its name")
    assert clear_garbage(files, "catalog/") == []
    assert len(clear_garbage(files)) == 3 + len(PATHS)
    late.abandon()
    assert unfinished.commit({})
    assert set(files.walk()) == {RECORD, AGAIN, *PATHS, "notes.partial"}


@pytest.mark.parametrize(
    ("record", "folder"),
    [
        (layout.generation_record(0), "catalog"),
        (layout.generation_record(3), "catalog"),
        (layout.teacher_record("t.v1"), "teachers/t.v1/image.zarr"),
        (layout.arrays_record("t", 2), "teachers/t/text.zarr"),
        (layout.unit_record("t", "text", 123456), "teachers/t/text.zarr/c/123456"),
        (layout.unit_record("t", "image", 7, 12), "teachers/t/images"),
    ],
)
def test_garbage_of_every_kind_of_commit_is_known(
    files: LocalStorage, record: str, folder: str
) -> None:
    late = Transaction(files, record)
    late.add(f"{folder}/file.json", b"late")
    late.add(f"{folder}/0", b"late")
    assert clear_garbage(files) == []
    winner = Transaction(files, record)
    winner.add(f"{folder}/0", b"first")
    assert winner.commit({})
    assert len(clear_garbage(files)) == 2
    assert set(files.walk()) == {record, f"{folder}/0"}


def test_a_torn_intent_and_a_staged_file_that_was_damaged_say_how_to_go_on(
    files: LocalStorage,
) -> None:
    remedy = r"remove that \.intent file and run the same build again"
    leave_an_intent(files)
    intent = files.read(intent_path(RECORD))
    files.write(intent_path(RECORD), intent[:100])
    with pytest.raises(
        DamagedCacheError, match=rf"is not a complete record \(100 bytes\).*; {remedy}"
    ):
        roll_forward(files, RECORD)
    files.write(intent_path(RECORD), intent)
    [partial] = [path for path in files.walk() if path.startswith(PATHS[1])]
    files.remove(partial)
    with pytest.raises(DamagedCacheError, match=rf"{PATHS[1]} does not match the .*; {remedy}"):
        roll_forward(files, RECORD)
    files.remove(intent_path(RECORD))
    assert stage(files, "b").commit({"who": "b"})
    clear_garbage(files)
    assert set(files.walk()) == {RECORD, *PATHS}
