"""The checkpoints of a run, and the best weights of its evaluations.

RUN/checkpoints/step-0000100/  model, optimizer, moving average (where there is one) and state.json
RUN/checkpoints/best-0000080/  model and state.json of the best evaluation up to a checkpoint that is kept
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ...errors import DamagedCacheError, TrainError
from ...formatting import first_line
from ...store.io.local import LocalStorage

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import ExportChoice

WeightsKind = Literal["model", "ema"]
_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Best:
    """The best weights of the evaluations so far."""

    step: int
    weights: WeightsKind
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class SavedState:
    """The content of a checkpoint."""

    step: int
    """Steps done."""

    state: Mapping[str, Any]
    """Facts that identify the run's cache, teacher and student."""

    model: "Mapping[str, Tensor]"
    optimizer: "Mapping[str, Tensor]"
    ema: "Mapping[str, Tensor] | None" = None
    """The moving average of the model; None where there is none."""

    best: Best | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a step, in a file."""

    path: Path
    step: int
    kind: WeightsKind

    def sha256(self) -> str:
        """Return the SHA-256 of the file.

        Raises:
            TrainError: the file is gone.
        """
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise self._gone() from None

    def load(self) -> "dict[str, Tensor]":
        """Return the tensors, on the host.

        Raises:
            DamagedCacheError: the file is damaged.
            TrainError: the file is gone.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path)
        except FileNotFoundError:
            raise self._gone() from None
        except (OSError, ValueError, SafetensorError) as error:
            raise _damaged(self.path.parent, error) from None

    def _gone(self) -> TrainError:
        return TrainError(
            f"{self.path.parent} was removed meanwhile, as a training does with old checkpoints; run the "
            "same command again"
        )


class Checkpoints:
    """The folder of a run's checkpoints; each is whole or not there."""

    def __init__(self, root: Path) -> None:
        """Take the folder; it need not exist."""
        self._root, self._files = root, LocalStorage(root)

    def steps(self) -> list[int]:
        """Return the steps that have a whole checkpoint, ascending."""
        found: list[int] = []
        for name in self._files.names(""):
            number = name.removeprefix("step-")
            if number.isdecimal() and (self._root / name / _STATE).is_file():
                found.append(int(number))
        return sorted(found)

    def save(self, saved: SavedState, *, keep: int, also: Collection[int] = ()) -> None:
        """Write a checkpoint whole and durable, then remove old ones.

        Of the steps the newest ``keep`` stay and those of ``also``; of the best weights those that a
        checkpoint refers to. Remains of a killed process that was writing or removing one go too.

        Raises:
            DiskFullError: the disk is full; earlier checkpoints stay.
        """
        best = saved.best and asdict(saved.best)
        files = {"model": saved.model, "optimizer": saved.optimizer}
        if saved.ema is not None:
            files["ema"] = saved.ema
        self._write(
            _step_name(saved.step), files, {"step": saved.step, "best": best, **saved.state}
        )
        steps = self.steps()
        kept = {step for step in steps if step in also} | set(steps[-keep:])
        names = {_step_name(step) for step in kept}
        names |= {_best_name(best.step) for step in kept if (best := self.best(step))}
        for name in self._files.names(""):
            if name.startswith(("step-", "best-")) and name not in names:
                shutil.rmtree(self._root / name, ignore_errors=True)

    def save_best(self, best: Best, weights: "Mapping[str, Tensor]") -> None:
        """Write weights whole and durable; the checkpoint that refers to them comes later.

        Raises:
            DiskFullError: the disk is full.
        """
        self._write(_best_name(best.step), {"model": weights}, asdict(best))

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, the newest first."""
        for later in reversed([each for each in self.steps() if each > step]):
            folder = self._folder(later)
            (folder / _STATE).unlink()  # from here on it is none
            shutil.rmtree(folder)

    def load_newest(self) -> SavedState | None:
        """Return the newest checkpoint; None where there is none.

        Raises:
            DamagedCacheError: it is damaged; the message says which folder to remove.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        steps = self.steps()
        if not steps:
            return None
        folder = self._folder(steps[-1])
        try:
            state = parse_object((folder / _STATE).read_bytes())
            best = _parse_best(state)
            model, optimizer = (
                load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer")
            )
            path = folder / "ema.safetensors"
            ema = load_file(path) if path.exists() else None
        except (OSError, ValueError, SafetensorError) as error:
            raise _damaged(folder, error) from None
        return SavedState(steps[-1], state, model, optimizer, ema, best)

    def best(self, step: int) -> Best | None:
        """Return the best weights up to a checkpoint; None where no step was evaluated.

        Raises:
            DamagedCacheError: state.json of the checkpoint is damaged.
        """
        folder = self._folder(step)
        try:
            return _parse_best(parse_object((folder / _STATE).read_bytes()))
        except (OSError, ValueError) as error:
            raise _damaged(folder, error) from None

    def weights(self, choice: "ExportChoice" = "last", step: int | None = None) -> Weights:
        """Return weights of the run.

        Args:
            choice: ``last``: as they were trained. ``ema``: their moving average. ``best``: those of the
                best evaluation.
            step: checkpoint; None: the newest.

        Raises:
            TrainError: there is no such checkpoint, or it has no such weights.
        """
        steps = self.steps()
        if not steps:
            raise TrainError(f"{self._root.parent} has no checkpoint yet; train longer")
        if step is not None and step not in steps:
            shown = ", ".join(f"{each:,}" for each in steps)
            raise TrainError(
                f"{self._root.parent} has no checkpoint of step {step:,}; it has those of {shown}"
            )
        step = steps[-1] if step is None else step
        if choice == "best":
            best = self.best(step)
            if best is None:
                raise TrainError(
                    f"{self._root.parent} has no best weights: no step up to {step:,} was evaluated; "
                    "make more steps with --eval-every"
                )
            folder = self._root / _best_name(best.step)
            return Weights(folder / "model.safetensors", best.step, best.weights)
        kind: WeightsKind = "ema" if choice == "ema" else "model"
        path = self._folder(step) / f"{kind}.safetensors"
        if kind == "ema" and not path.exists():
            raise TrainError(
                f"{self._folder(step)} has no moving average; make more steps with --ema"
            )
        return Weights(path, step, kind)

    def _write(
        self, name: str, files: "Mapping[str, Mapping[str, Tensor]]", state: Mapping[str, Any]
    ) -> None:
        from ...siglip.files import save_weights
        from ..export.atomic_folder import replaced_atomically

        with replaced_atomically(self._root / name, mark=_STATE) as folder:
            for file, tensors in files.items():
                save_weights(folder / f"{file}.safetensors", tensors)
            (folder / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")

    def _folder(self, step: int) -> Path:
        return self._root / _step_name(step)


def _step_name(step: int) -> str:
    return f"step-{step:07d}"


def _best_name(step: int) -> str:
    return f"best-{step:07d}"


def _parse_best(state: Mapping[str, Any]) -> Best | None:
    """Return the best weights that a state.json refers to.

    Raises:
        ValueError: what it says of them is damaged.
    """
    best = state.get("best")
    try:
        return None if best is None else Best(**best)
    except TypeError as error:
        raise ValueError(first_line(error)) from None


def _damaged(folder: Path, error: Exception) -> DamagedCacheError:
    return DamagedCacheError(
        f"{folder} is damaged ({first_line(error)}); remove it to resume from the checkpoint before it"
    )


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ValueError: the text is anything else.
    """
    try:
        found: object = json.loads(text)
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return cast("dict[str, Any]", found)
