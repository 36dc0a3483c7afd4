"""The checkpoints of a run: RUN/checkpoints/step-0000100/ with model, optimizer and state.json."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...errors import DamagedCacheError
from ...formatting import first_line
from ...store.io.local import LocalStorage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class SavedState:
    """The content of a checkpoint."""

    step: int
    """Steps done."""

    state: Mapping[str, Any]
    """Facts that identify the run's cache, teacher and student."""

    model: "Mapping[str, Tensor]"
    optimizer: "Mapping[str, Tensor]"


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
            if number.isdecimal() and (self._root / name / "state.json").is_file():
                found.append(int(number))
        return sorted(found)

    def save(self, saved: SavedState, *, keep: int) -> None:
        """Write a checkpoint whole and durable, then remove all but the newest ``keep``.

        Remains of a killed process that was writing or removing one are removed too.

        Raises:
            DiskFullError: the disk is full; earlier checkpoints stay.
        """
        from safetensors.torch import save_file

        from ..export.atomic_folder import replaced_atomically

        state = json.dumps({"step": saved.step, **saved.state}, indent=1)
        with replaced_atomically(self._folder(saved.step), mark="state.json") as folder:
            save_file(dict(saved.model), folder / "model.safetensors")
            save_file(dict(saved.optimizer), folder / "optimizer.safetensors")
            (folder / "state.json").write_text(state, encoding="utf-8")
        kept = {self._folder(step).name for step in self.steps()[-keep:]}
        for name in self._files.names(""):
            if name.startswith("step-") and name not in kept:
                shutil.rmtree(self._root / name, ignore_errors=True)

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
            state = parse_object((folder / "state.json").read_bytes())
            model, optimizer = (
                load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer")
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise DamagedCacheError(
                f"{folder} is damaged ({first_line(error)}); remove it to resume from the checkpoint "
                "before it"
            ) from None
        return SavedState(steps[-1], state, model, optimizer)

    def newest_weights_sha256(self) -> str | None:
        """Return the SHA-256 of the newest checkpoint's weights; None if there is no checkpoint."""
        steps = self.steps()
        if not steps:
            return None
        with (self._folder(steps[-1]) / "model.safetensors").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _folder(self, step: int) -> Path:
        return self._root / f"step-{step:07d}"


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
