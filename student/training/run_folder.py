"""The folder of a run that a training writes, and the lock that lets one process at a time train there."""

import contextlib
import json
import math
import os
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ...errors import DiskFullError, SettingError, TrainError
from ...formatting import first_line
from ...store.io.foreign_files import is_stray
from ...store.io.local import FULL_DISK, sync_file
from ...store.io.locks import try_lock
from .checkpoints import Best, SavedState, parse_object
from .run_files import CONFIG, EVALUATION, FACTS, METRICS, RunFiles, whole_lines

if TYPE_CHECKING:
    from torch import Tensor

_LOCK = "lock"
_BEFORE_CONFIG = {_LOCK, FACTS, EVALUATION}
"""Files of a run that was killed before it had a config.yaml."""


class RunFolder(RunFiles):
    """One run's folder, locked by this process until close() or its end."""

    def __init__(self, root: Path) -> None:
        """Make the folder, if it is not there, and lock it.

        Raises:
            SettingError: the folder holds other files and is no run; nothing is written there.
            TrainError: another process trains there.
        """
        super().__init__(root)
        self._refuse_foreign()
        root.mkdir(parents=True, exist_ok=True)
        self._lock: TextIO = (root / _LOCK).open("a")
        if not try_lock(self._lock.fileno()):
            self._lock.close()
            raise TrainError(
                f"another process trains in {root}; wait for it, or name another --out"
            ) from None
        self._metrics: TextIO | None = None

    def close(self) -> None:
        """Close the files and release the lock."""
        if self._metrics is not None:
            with contextlib.suppress(OSError):  # of a full disk, which is reported already
                self._metrics.close()
        self._lock.close()

    def _refuse_foreign(self) -> None:
        if (self.root / CONFIG).exists():
            return
        others = [name for name in self._files.names("") if name not in _BEFORE_CONFIG]
        others = [n for n in others if not n.endswith(".partial") and not is_stray(n)]
        if others:
            raise SettingError(
                f"{self.root} holds {others[0]} and no {CONFIG}, so it is no run; name a new folder by "
                "--out"
            )

    def write_config(self, text: str) -> None:
        """Write config.yaml, whole and durable."""
        self.write(CONFIG, text.encode())

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write run.json, whole and durable."""
        self.write(FACTS, json.dumps(facts, indent=1).encode())

    def record_changes(self, done: int, settings: Mapping[str, tuple[Any, Any]]) -> None:
        """Add settings that changed after a step, as (old, new), to run.json."""
        facts = self.read_facts()
        values = {name: {"old": was, "new": now} for name, (was, now) in settings.items()}
        change = {"after_step": done, "settings": values}
        self.write_facts({**facts, "changes": [*facts.get("changes", []), change]})

    def write_evaluation(self, columns: Mapping[str, Any]) -> None:
        """Write evaluation.json, whole and durable."""
        self.write(EVALUATION, json.dumps(columns, indent=1, ensure_ascii=False).encode())

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the run, whole and durable."""
        partial = f"{name}.partial"
        self._files.write(partial, data)
        self._files.rename(partial, name)
        self._files.sync_folders([name])

    def start_metrics(self, steps_done: int) -> None:
        """Open metrics.jsonl to append; drop lines of steps after the last checkpoint."""
        path = self.root / METRICS
        kept = [line for line in whole_lines(path) if _step_of(line) <= steps_done]
        self.write(METRICS, "".join(kept).encode())
        self._metrics = path.open("a", encoding="utf-8")

    def add_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one step's metrics; numbers that are not finite become null.

        Raises:
            DiskFullError: the disk is full.
            TrainError: the file cannot be written.
        """
        assert self._metrics is not None
        plain = {name: None if _is_nonfinite(value) else value for name, value in values.items()}
        with self._written():
            self._metrics.write(json.dumps(plain, ensure_ascii=False) + "\n")
            self._metrics.flush()

    def save_checkpoint(self, saved: SavedState, *, keep: int, also: Collection[int] = ()) -> None:
        """Write a checkpoint, after the metrics of its steps; see Checkpoints.save.

        Raises:
            DiskFullError: the disk is full; earlier checkpoints stay.
            TrainError: the folder was removed or moved, or cannot be written.
        """
        with self._written():
            if self._metrics is not None:
                sync_file(self._metrics.fileno())
            self.checkpoints.save(saved, keep=keep, also=also)

    def save_best(self, best: Best, weights: "Mapping[str, Tensor]") -> None:
        """Write the best weights so far.

        Raises:
            DiskFullError: the disk is full; earlier checkpoints stay.
            TrainError: the folder was removed or moved, or cannot be written.
        """
        with self._written():
            self.checkpoints.save_best(best, weights)

    @contextmanager
    def _written(self) -> Generator[None]:
        """Give errors of a ``with`` block that writes here one line; it must still be the folder locked."""
        try:
            here = (self.root / _LOCK).stat()
            if not os.path.samestat(here, os.fstat(self._lock.fileno())):
                raise FileNotFoundError
            yield
        except FileNotFoundError:
            raise TrainError(
                f"{self.root} was removed or moved while a training wrote there; move it back and run the "
                "same command again, or start another run"
            ) from None
        except DiskFullError as error:
            raise DiskFullError(f"{error}; the last checkpoint stays") from error
        except OSError as error:
            kind = DiskFullError if error.errno in FULL_DISK else TrainError
            raise kind(
                f"{self.root} cannot be written ({first_line(error)}); the last checkpoint stays: make "
                "room or mend it, and run the same command again"
            ) from error


def _is_nonfinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _step_of(line: str) -> float:
    """Return the step of a line of metrics; infinity where it has none."""
    try:
        step: object = parse_object(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
    return step if isinstance(step, int) else float("inf")
