"""The files of a run, and the lock that lets one process at a time train there.

RUN/config.yaml             every setting: given and decided
RUN/run.json                hashes of cache, teacher and student, and the changes of settings at resuming
RUN/metrics.jsonl           one object a step, each step once
RUN/checkpoints/            (checkpoints.py)
RUN/evaluation.json         teacher, student before, student after
RUN/projection.safetensors  the map between the widths, where there is one
RUN/model/                  the finished student, for plain transformers
"""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ...errors import SettingError, TrainError
from ...formatting import first_line
from ...store.io.foreign_files import is_stray
from ...store.io.local import LocalStorage, sync_file
from ...store.io.locks import try_lock
from .checkpoints import Checkpoints, parse_object

_CONFIG, _FACTS, _EVALUATION = "config.yaml", "run.json", "evaluation.json"
_METRICS = "metrics.jsonl"
_BEFORE_CONFIG = {"lock", _FACTS, _EVALUATION}
"""Files of a run that was killed before it had a config.yaml."""


class RunFolder:
    """One run's folder, locked by this process until close() or its end."""

    def __init__(self, root: Path) -> None:
        """Make the folder, if it is not there, and lock it.

        Raises:
            SettingError: the folder holds other files and is no run; nothing is written there.
            TrainError: another process trains there.
        """
        self.root = root
        self.checkpoints = Checkpoints(root / "checkpoints")
        self._files = LocalStorage(root)
        self._refuse_foreign()
        root.mkdir(parents=True, exist_ok=True)
        self._lock: TextIO = (root / "lock").open("a")
        if not try_lock(self._lock.fileno()):
            self._lock.close()
            raise TrainError(
                f"another process trains in {root}; wait for it, or name another --out"
            ) from None
        self._metrics: TextIO | None = None
        self._events: Any = None

    @property
    def model(self) -> Path:
        """Folder of the finished student."""
        return self.root / "model"

    def close(self) -> None:
        """Close the files and release the lock."""
        for each in (self._metrics, self._events, self._lock):
            if each is not None:
                each.close()

    def _refuse_foreign(self) -> None:
        if (self.root / _CONFIG).exists():
            return
        others = [name for name in self._files.names("") if name not in _BEFORE_CONFIG]
        others = [n for n in others if not n.endswith(".partial") and not is_stray(n)]
        if others:
            raise SettingError(
                f"{self.root} holds {others[0]} and no {_CONFIG}, so it is no run; name a new folder by "
                "--out"
            )

    def read_config(self) -> dict[str, Any] | None:
        """Return the settings the run was started with; None for a new run.

        Raises:
            TrainError: the file is damaged.
        """
        import yaml

        from ..config_file import read_resolved

        path = self.root / _CONFIG
        if not path.exists():
            return None
        try:
            found = read_resolved(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise TrainError(f"{path} cannot be read: {first_line(error)}; restore it") from None
        if found is None:
            raise TrainError(f"{path} holds no settings; restore it, or name another --out")
        return found

    def write_config(self, text: str) -> None:
        """Write config.yaml, whole and durable."""
        self.write(_CONFIG, text.encode())

    def read_facts(self) -> dict[str, Any]:
        """Return run.json.

        Raises:
            TrainError: the file is missing or damaged.
        """
        try:
            return parse_object(self._files.read(_FACTS))
        except (FileNotFoundError, ValueError):
            raise TrainError(
                f"{self.root / _FACTS} is missing or damaged; it says which cache and student the run "
                "is trained on: restore it, or start another run with another --out"
            ) from None

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write run.json, whole and durable."""
        self.write(_FACTS, json.dumps(facts, indent=1).encode())

    def read_evaluation(self) -> dict[str, Any]:
        """Return the evaluations made so far, by column; empty where there is none."""
        try:
            return parse_object(self._files.read(_EVALUATION))
        except (FileNotFoundError, ValueError):
            return {}

    def write_evaluation(self, columns: Mapping[str, Any]) -> None:
        """Write evaluation.json, whole and durable."""
        self.write(_EVALUATION, json.dumps(columns, indent=1, ensure_ascii=False).encode())

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the run, whole and durable."""
        partial = f"{name}.partial"
        self._files.write(partial, data)
        self._files.rename(partial, name)
        self._files.sync_folders([name])

    def start_metrics(self, steps_done: int) -> None:
        """Open metrics.jsonl to append; drop lines of steps after the last checkpoint."""
        path = self.root / _METRICS
        kept = [line for line in _whole_lines(path) if _step_of(line) <= steps_done]
        self.write(_METRICS, "".join(kept).encode())
        self._metrics = path.open("a", encoding="utf-8")

    def start_tensorboard(self, steps_done: int) -> None:
        """Write the metrics as TensorBoard events too.

        Raises:
            SettingError: the package tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise SettingError(
                "--tensorboard needs the package tensorboard, which is not installed: pip install "
                "tensorboard"
            ) from None
        folder = str(self.root / "tensorboard")
        self._events = SummaryWriter(folder, purge_step=steps_done + 1)

    def add_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one step's metrics; numbers that are not finite become null."""
        assert self._metrics is not None
        plain = {name: None if _is_nonfinite(value) else value for name, value in values.items()}
        self._metrics.write(json.dumps(plain, ensure_ascii=False) + "\n")
        self._metrics.flush()
        if self._events is not None:
            for name, value in values.items():
                if name != "step" and isinstance(value, int | float):
                    self._events.add_scalar(name, value, values["step"])

    def sync_metrics(self) -> None:
        """Make metrics.jsonl durable; before a checkpoint, which must not be ahead of it."""
        if self._metrics is not None:
            sync_file(self._metrics.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of every step so far, in order."""
        return [json.loads(line) for line in _whole_lines(self.root / _METRICS)]


def _is_nonfinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a file, without a torn last one."""
    with contextlib.suppress(FileNotFoundError):
        text = path.read_text(encoding="utf-8", errors="replace")
        return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return []


def _step_of(line: str) -> float:
    """Return the step of a line of metrics; infinity where it has none."""
    try:
        step: object = parse_object(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
    return step if isinstance(step, int) else float("inf")
