"""The files of a run, for reading; a training may write there at the same time.

RUN/config.yaml             every setting: given and decided
RUN/run.json                hashes of cache, teacher and student, and the changes of settings at resuming
RUN/metrics.jsonl           one object a step, each step once
RUN/checkpoints/            (checkpoints.py)
RUN/evaluation.json         teacher, student before, student after
RUN/projection.safetensors  the map between the widths, where there is one
RUN/model/                  the finished student, for plain transformers
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ...errors import TrainError
from ...formatting import first_line
from ...store.io.local import LocalStorage
from .checkpoints import Checkpoints, parse_object

CONFIG, FACTS, EVALUATION = "config.yaml", "run.json", "evaluation.json"
METRICS = "metrics.jsonl"


class RunFiles:
    """One run's folder."""

    def __init__(self, root: Path) -> None:
        """Take the folder; it need not exist."""
        self.root = root
        self.checkpoints = Checkpoints(root / "checkpoints")
        self._files = LocalStorage(root)

    @property
    def model(self) -> Path:
        """Folder of the finished student."""
        return self.root / "model"

    def read_config(self) -> dict[str, Any] | None:
        """Return the settings the run was started with; None for a new run.

        Raises:
            TrainError: the file is damaged.
        """
        import yaml

        from ..config_file import read_resolved

        path = self.root / CONFIG
        if not path.exists():
            return None
        try:
            found = read_resolved(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise TrainError(f"{path} cannot be read: {first_line(error)}; restore it") from None
        if found is None:
            raise TrainError(f"{path} holds no settings; restore it, or name another --out")
        return found

    def read_facts(self) -> dict[str, Any]:
        """Return run.json.

        Raises:
            TrainError: the file is missing or damaged.
        """
        try:
            return parse_object(self._files.read(FACTS))
        except (FileNotFoundError, ValueError):
            raise TrainError(
                f"{self.root / FACTS} is missing or damaged; it says which cache and student the run "
                "is trained on: restore it, or start another run with another --out"
            ) from None

    def read_evaluation(self) -> dict[str, Any]:
        """Return the evaluations made so far, by column; empty where there is none."""
        try:
            return parse_object(self._files.read(EVALUATION))
        except (FileNotFoundError, ValueError):
            return {}

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of every step so far, in order."""
        return [json.loads(line) for line in whole_lines(self.root / METRICS)]


def teachers_of(settings: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Return the names of a run's teachers from its settings, that of its evaluation first.

    None stands for the only one of its cache.
    """
    teacher = settings.get("teacher")
    if isinstance(teacher, Mapping):  # with their weights
        return tuple(cast("Mapping[str, float]", teacher))
    return (teacher,)


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file, without a torn last one."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    # Not splitlines(), which also splits at characters inside keys, such as U+2028.
    return [f"{line}\n" for line in text.split("\n")[:-1]]
