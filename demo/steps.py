"""The commands of the guided tour, as a user would type them."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingError
from .architecture import CHECKPOINTS, Size

COMMAND = ("siglip2-cache",)
CORPUS = ("python", "-m", "siglip2_cache.demo.corpus")
"""The two programs that a tour runs."""

_LINE_WIDTH = 100
_VERIFY_SAMPLE = 16
_CONTRASTIVE_LR, _DISTILLED_LR = "2e-3", "8e-3"
"""Peak learning rates, each the best for its objective (benchmarks/results/distillation)."""

_QUERIES = (
    "a blue square above a brown cross",
    "ein schwarzes Quadrat",
    "una cruz amarilla",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TourConfig:
    """Settings of one tour."""

    out: Path
    """Folder for all files, new or of an earlier tour."""

    seed: int = 0
    """Random seed of the corpora and of both trainings."""

    is_quick: bool = False
    """Use a tenth of the images and steps: to test the commands, not the result."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise SettingError(f"--seed must be at least 0, got {self.seed}")

    @property
    def num_images(self) -> int:
        """Number of training scenes."""
        return 400 if self.is_quick else 4000

    @property
    def num_held_out(self) -> int:
        """Number of held-out scenes."""
        return 100 if self.is_quick else 1000

    @property
    def num_steps(self) -> int:
        """Steps of each training."""
        return 40 if self.is_quick else 400


class TourPaths:
    """Paths of a tour's files."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.scenes, self.scenes_cache = out / "scenes", out / "scenes-cache"
        self.held_out, self.held_out_cache = out / "held-out", out / "held-out-cache"
        self.contrastive, self.distilled = out / "contrastive", out / "distilled"
        self.page, self.picture = out / "neighbors.html", out / "result.png"
        self.start = checkpoint("student")
        """Folder of a shipped model."""

    def evaluation(self, of: str) -> Path:
        """Return the file of a model's evaluation: start, contrastive or distilled."""
        return self.out / f"eval-{of}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command of the tour."""

    purpose: str
    """Purpose, in one line."""

    program: tuple[str, ...]
    """COMMAND or CORPUS."""

    arguments: tuple[str, ...]

    into: Path | None = None
    """File for its output, like the shell's ``>``; None: show the output."""

    made: Path | None = None
    """Last file that it writes, if it cannot run again; None: it resumes by itself."""

    def as_typed(self) -> str:
        """Return the command for a shell; a long one has several lines."""
        pieces: list[str] = []
        for word in (*self.program, *self.arguments):
            if word.startswith("-") or not pieces:
                pieces.append(shlex.quote(word))
            else:  # an option stays with its value
                pieces[-1] += f" {shlex.quote(word)}"
        if self.into is not None:
            pieces.append(f"> {shlex.quote(str(self.into))}")
        lines = [pieces[0]]
        for piece in pieces[1:]:
            if len(lines[-1]) + len(piece) < _LINE_WIDTH:
                lines[-1] += f" {piece}"
            else:
                lines.append(f"    {piece}")
        return " \\\n".join(lines)


def checkpoint(size: Size) -> Path:
    """Return the folder of a shipped model, relative to the current folder if it is below."""
    folder = CHECKPOINTS / size
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def tour_steps(config: TourConfig) -> list[Step]:
    """Return every command of a tour, in order."""
    return [
        *_data_steps(config),
        *_cache_steps(config),
        *_training_steps(config),
        *_evaluation_steps(config),
        _page_step(config),
    ]


def _data_steps(config: TourConfig) -> Iterator[Step]:
    at = TourPaths(config.out)
    faults = ("--missing", "0.3", "--mismatched", "0.45")
    seed = ("--seed", str(config.seed))
    yield Step(
        purpose="Generate scenes with captions like those of the web: 30 % missing, 45 % of the others wrong",
        program=CORPUS,
        arguments=(str(at.scenes), "--images", str(config.num_images), *seed, *faults),
        made=at.scenes / "captions.jsonl",
    )
    yield Step(
        purpose="Generate test scenes: layouts that no training shows, all captions correct",
        program=CORPUS,
        arguments=(
            *(str(at.held_out), "--images", str(config.num_held_out), *seed),
            *("--held-out", "--vague", "0"),
        ),
        made=at.held_out / "captions.jsonl",
    )


def _cache_steps(config: TourConfig) -> Iterator[Step]:
    at = TourPaths(config.out)
    teacher = ("--teacher", str(checkpoint("teacher")))
    seed = ("--seed", str(config.seed))
    yield Step(
        purpose="Build a cache: embed every image and every different caption with the teacher, once",
        program=COMMAND,
        arguments=("build", str(at.scenes / "captions.jsonl"), str(at.scenes_cache), *teacher),
    )
    yield Step(
        purpose="Build a cache of the test scenes",
        program=COMMAND,
        arguments=("build", str(at.held_out / "captions.jsonl"), str(at.held_out_cache), *teacher),
    )
    yield Step(
        purpose="Show what a cache contains",
        program=COMMAND,
        arguments=("info", str(at.scenes_cache)),
    )
    yield Step(
        purpose="Verify the cache: all checksums, and some rows embedded again by the teacher",
        program=COMMAND,
        arguments=("verify", str(at.scenes_cache), "--sample", str(_VERIFY_SAMPLE), *seed),
    )
    yield Step(
        purpose="Find mismatched captions: those that the teacher scores lowest",
        program=COMMAND,
        arguments=("mismatched", str(at.scenes_cache), "--limit", "3"),
    )


def _training_steps(config: TourConfig) -> Iterator[Step]:
    at = TourPaths(config.out)

    def train(out: Path, lr: str, *weights: str) -> tuple[str, ...]:
        return (
            *("train", str(at.scenes_cache), "--student", str(at.start), "--out", str(out)),
            *("--steps", str(config.num_steps), "--global-batch-size", "128", "--lr", lr),
            # The test scenes replace a held-out share, whose captions would be as wrong as the others.
            *("--warmup-steps", str(config.num_steps // 10), "--val-share", "0"),
            *("--seed", str(config.seed)),
            *(word for weight in weights for word in ("--weight", weight)),
        )

    yield Step(
        purpose="Train a student on these captions alone, without the teacher",
        program=COMMAND,
        arguments=train(at.contrastive, _CONTRASTIVE_LR, "contrastive=1", "soft=0", "cosine=0"),
    )
    yield Step(
        purpose="Train the same student from the cached embeddings",
        program=COMMAND,
        arguments=train(at.distilled, _DISTILLED_LR),
    )


def _evaluation_steps(config: TourConfig) -> Iterator[Step]:
    at = TourPaths(config.out)
    models = {
        "start": ("Evaluate the initial student", at.start),
        "contrastive": ("Evaluate the student trained on captions alone", at.contrastive / "model"),
        "distilled": ("Evaluate the distilled student", at.distilled / "model"),
    }
    for name, (purpose, model) in models.items():
        yield Step(
            purpose=f"{purpose} on the test scenes",
            program=COMMAND,
            arguments=("eval", str(model), str(at.held_out_cache), "--split", "all", "--json"),
            into=at.evaluation(name),
        )


def _page_step(config: TourConfig) -> Step:
    at = TourPaths(config.out)
    texts = (word for text in _QUERIES for word in ("--text", text))
    keys = (f"held-out-{config.seed}-{i:06d}" for i in (3, 8))
    return Step(
        purpose="Show the nearest neighbours of some texts and scenes, also as a page",
        program=COMMAND,
        arguments=(
            *("neighbors", str(at.held_out_cache), *texts),
            *(word for key in keys for word in ("--key", key)),
            *("-k", "6", "--html", str(at.page)),
        ),
    )
