"""RUN on disk: settings, one line of metrics a step, checkpoints, and the lock of who trains there.

RUN/config.yaml             every setting: those given, and those decided
RUN/metrics.jsonl           one object a step, each step once
RUN/checkpoints/step-0000100/
                            model.safetensors, optimizer.safetensors, state.json
RUN/evaluation.json         teacher, student before, student after
RUN/projection.safetensors  the map between the widths, where there is one
RUN/model/                  the finished student, for plain transformers
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from ...errors import DamagedCacheError, SettingError, TrainError
from ...formatting import first_line
from ...store.io.foreign_files import is_stray
from ...store.io.local import LocalStorage, sync_file
from ...store.io.locks import try_lock

if TYPE_CHECKING:
    from torch import Tensor

_CONFIG, _METRICS, _CHECKPOINTS = "config.yaml", "metrics.jsonl", "checkpoints"
_EVALUATION, _FACTS = "evaluation.json", "run.json"
_BEFORE_CONFIG = {"lock", _FACTS, _EVALUATION}
"""What a run killed as it began may have left."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """A checkpoint as it was read."""

    step: int
    """Steps that were done."""

    state: Mapping[str, Any]
    """What the run was trained on; refused where it differs."""

    model: "Mapping[str, Tensor]"
    optimizer: "Mapping[str, Tensor]"


class RunFolder:
    """One run's folder, held by one process at a time; a killed one holds it no longer."""

    def __init__(self, root: Path) -> None:
        """Make the folder, if it is not there, and take it.

        Raises:
            SettingError: it is no run, but holds files of somebody; nothing is written there.
            TrainError: another process trains there.
        """
        self.root = root
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
        """Where the finished student goes."""
        return self.root / "model"

    def close(self) -> None:
        """Let go of the folder."""
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

    # -- settings

    def read_config(self) -> dict[str, Any] | None:
        """Return the settings the run was begun with; None for a new one.

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
        self._write(_CONFIG, text.encode())

    def read_evaluation(self) -> dict[str, Any]:
        """Return what was evaluated so far, by column."""
        try:
            return _as_object(self._files.read(_EVALUATION))
        except (FileNotFoundError, ValueError):
            return {}

    def read_facts(self) -> dict[str, Any]:
        """Return what run.json says that the run was begun with.

        Raises:
            TrainError: there is none, or it is damaged.
        """
        try:
            return _as_object(self._files.read(_FACTS))
        except (FileNotFoundError, ValueError):
            raise TrainError(
                f"{self.root / _FACTS} is missing or damaged, which says what the run was begun with; "
                "restore it, or begin another run with another --out"
            ) from None

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write run.json, whole and durable."""
        self._write(_FACTS, json.dumps(facts, indent=1).encode())

    def write_evaluation(self, columns: Mapping[str, Any]) -> None:
        """Write evaluation.json, whole and durable."""
        self._write(_EVALUATION, json.dumps(columns, indent=1, ensure_ascii=False).encode())

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the run, whole and durable."""
        self._write(name, data)

    # -- metrics

    def start_metrics(self, steps_done: int) -> None:
        """Open metrics.jsonl to append; lines of steps after the last checkpoint are dropped."""
        path = self.root / _METRICS
        kept = [line for line in _lines(path) if _step_of(line) <= steps_done]
        self._write(_METRICS, "".join(kept).encode())
        self._metrics = path.open("a", encoding="utf-8")

    def start_tensorboard(self, steps_done: int) -> None:
        """Write what add_metrics is given as TensorBoard events, too.

        Raises:
            SettingError: the package tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise SettingError(
                "tensorboard is not installed, which --tensorboard needs: pip install tensorboard"
            ) from None
        folder = str(self.root / "tensorboard")
        self._events = SummaryWriter(folder, purge_step=steps_done + 1)

    def add_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one step's metrics."""
        assert self._metrics is not None
        self._metrics.write(json.dumps(values, ensure_ascii=False) + "\n")
        self._metrics.flush()
        if self._events is not None:
            for name in values.keys() - {"step"}:
                self._events.add_scalar(name, values[name], values["step"])

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of every step so far, in order."""
        return [json.loads(line) for line in _lines(self.root / _METRICS)]

    # -- checkpoints

    def weights_sha256(self) -> str | None:
        """Return the SHA-256 of the newest checkpoint's weights; None where there is no checkpoint."""
        steps = self._steps()
        if not steps:
            return None
        with (self._checkpoint(steps[-1]) / "model.safetensors").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def has_checkpoint(self) -> bool:
        """Say whether there is anything to go on from."""
        return bool(self._steps())

    def save(self, saved: SavedState, *, keep: int) -> None:
        """Write a checkpoint whole and durable, then remove all but the newest ``keep``.

        What a process left that was killed as it wrote or removed one goes, too.

        Raises:
            DiskFullError: no room; earlier checkpoints stay.
        """
        from safetensors.torch import save_file

        from ..export.atomic_folder import written_whole

        if self._metrics is not None:  # a checkpoint never knows more steps than the metrics
            self._metrics.flush()
            sync_file(self._metrics.fileno())
        state = json.dumps({"step": saved.step, **saved.state}, indent=1)
        with written_whole(self._checkpoint(saved.step), mark="state.json") as folder:
            save_file(dict(saved.model), folder / "model.safetensors")
            save_file(dict(saved.optimizer), folder / "optimizer.safetensors")
            (folder / "state.json").write_text(state, encoding="utf-8")
        self._prune(keep)

    def load(self) -> SavedState | None:
        """Return the newest checkpoint; None where there is none.

        Raises:
            DamagedCacheError: it is damaged; the message says which folder to remove.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        steps = self._steps()
        if not steps:
            return None
        folder = self._checkpoint(steps[-1])
        try:
            state = _as_object((folder / "state.json").read_bytes())
            model, optimizer = (
                load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer")
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise DamagedCacheError(
                f"{folder} is damaged ({first_line(error)}); remove it to go on from the checkpoint "
                "before it"
            ) from None
        return SavedState(steps[-1], state, model, optimizer)

    def _prune(self, keep: int) -> None:
        kept = {self._checkpoint(step).name for step in self._steps()[-keep:]}
        for name in self._files.names(_CHECKPOINTS):
            if name.startswith("step-") and name not in kept:
                shutil.rmtree(self.root / _CHECKPOINTS / name, ignore_errors=True)

    def _checkpoint(self, step: int) -> Path:
        return self.root / _CHECKPOINTS / f"step-{step:07d}"

    def _steps(self) -> list[int]:
        """Return the steps that have a whole checkpoint, ascending."""
        folder = self.root / _CHECKPOINTS
        found: list[int] = []
        for name in self._files.names(_CHECKPOINTS):
            number = name.removeprefix("step-")
            if number.isdecimal() and (folder / name / "state.json").is_file():
                found.append(int(number))
        return sorted(found)

    def _write(self, name: str, data: bytes) -> None:
        partial = f"{name}.partial"
        self._files.write(partial, data)
        self._files.rename(partial, name)
        self._files.sync_folders([name])


def _lines(path: Path) -> list[str]:
    """Return the whole lines of a file; a last one without end is torn and left out."""
    with contextlib.suppress(FileNotFoundError):
        text = path.read_text(encoding="utf-8", errors="replace")
        return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return []


def _step_of(line: str) -> float:
    """Return the step of a line of metrics; infinity where it is none."""
    try:
        step: object = _as_object(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
    return step if isinstance(step, int) else float("inf")


def _as_object(text: str | bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        found: object = json.loads(text)
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return cast("dict[str, Any]", found)
