"""Settings of a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import SettingError
from ..store.io.location import Location
from ..student.evaluation.eval_set import SPLITS, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class FullReportConfig:
    """Settings of one report."""

    cache: Location | None
    """The cache; None: the one that the run was trained on."""

    run: Path | None = None
    """Folder of a training; None: the report is about the cache alone."""

    teacher: str | None = None
    """Name in the cache; None: the one of the run, or every teacher of the cache."""

    samples: int = 2000
    """Most images of the map, the probabilities, the near duplicates and the evaluation; of more, a random
    choice."""

    examples: int = 8
    """Most rows of pictures in each part."""

    split: Split = "val"
    """Images that a run's student is evaluated on."""

    seed: int = 0
    """Random seed of every choice."""

    device: str = "auto"
    """Device of the student."""

    batch_size: int = 32
    """Images, and texts, in one forward pass of the student."""

    decode_workers: int | None = None
    """Decoding processes; 0: decode in this process; None: one a core, at most 16."""

    corpus_roots: Mapping[str, str] = field(default_factory=dict[str, str])
    """Old folder to new folder, where the corpus has moved."""

    def __post_init__(self) -> None:
        if self.cache is None and self.run is None:
            raise SettingError("a report needs a cache or a run")
        for name, least in (("samples", 2), ("examples", 0), ("seed", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                words = name.replace("_", "-")
                raise SettingError(f"--{words} must be at least {least}, got {getattr(self, name)}")
        if self.split not in SPLITS:
            raise SettingError(f"--split must be one of {', '.join(SPLITS)}, got {self.split!r}")
