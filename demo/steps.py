"""The commands of the guided tour, as a user would type them."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingError
from .architecture import CHECKPOINTS, Size

COMMAND = ("siglip2-cache",)
CORPUS = ("python", "-m", "siglip2_cache.demo.corpus")
"""The two programs that are run."""

_LINE_WIDTH = 100
_ROWS_ASKED_AGAIN = 16
_QUERIES = (
    "a blue square above a brown cross",
    "ein schwarzes Quadrat",
    "una cruz amarilla",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TourConfig:
    """Settings of one tour."""

    out: Path
    """Folder that everything goes into, new or of a tour before."""

    seed: int = 0
    """Of the corpora and of both trainings."""

    is_quick: bool = False
    """A tenth of the images and of the steps: whether it runs, not what it is worth."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise SettingError(f"--seed must be at least 0, got {self.seed}")

    @property
    def num_images(self) -> int:
        return 400 if self.is_quick else 4000

    @property
    def num_held_out(self) -> int:
        return 100 if self.is_quick else 1000

    @property
    def num_steps(self) -> int:
        return 40 if self.is_quick else 400


class Places:
    """Where a tour leaves what it makes."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.scenes, self.scenes_cache = out / "scenes", out / "scenes-cache"
        self.held_out, self.held_out_cache = out / "held-out", out / "held-out-cache"
        self.contrastive, self.distilled = out / "contrastive", out / "distilled"
        self.page, self.picture = out / "neighbors.html", out / "result.png"
        self.start = checkpoint("student")
        """Shipped, not made."""

    def evaluation(self, of: str) -> Path:
        """Return the file of one model's evaluation: start, contrastive or distilled."""
        return self.out / f"eval-{of}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command of the tour."""

    purpose: str
    """What it is for, in one line."""

    program: tuple[str, ...]
    """COMMAND or CORPUS."""

    arguments: tuple[str, ...]

    into: Path | None = None
    """File that its output goes to, as the shell's ``>`` does; None: it is shown."""

    made: Path | None = None
    """Its last file, where the command refuses to run again; None: it goes on by itself."""

    def as_typed(self) -> str:
        """Return the command for a shell, long ones in several lines."""
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
    """Return the folder of a shipped model, from the current folder where it lies below it."""
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
    at = Places(config.out)
    faults = ("--missing", "0.3", "--mismatched", "0.45")
    seed = ("--seed", str(config.seed))
    yield Step(
        purpose="Draw scenes with captions as the web has them: 30 % missing, 45 % of the others wrong",
        program=CORPUS,
        arguments=(str(at.scenes), "--images", str(config.num_images), *seed, *faults),
        made=at.scenes / "captions.jsonl",
    )
    yield Step(
        purpose="Draw scenes to test on: arrangements that no training shows, all captions right",
        program=CORPUS,
        arguments=(
            *(str(at.held_out), "--images", str(config.num_held_out), *seed),
            *("--held-out", "--vague", "0"),
        ),
        made=at.held_out / "captions.jsonl",
    )


def _cache_steps(config: TourConfig) -> Iterator[Step]:
    at = Places(config.out)
    teacher = ("--teacher", str(checkpoint("teacher")))
    seed = ("--seed", str(config.seed))
    yield Step(
        purpose="Run the teacher once over every image and every different caption; keep its embeddings",
        program=COMMAND,
        arguments=("build", str(at.scenes / "captions.jsonl"), str(at.scenes_cache), *teacher),
    )
    yield Step(
        purpose="The same for the test scenes",
        program=COMMAND,
        arguments=("build", str(at.held_out / "captions.jsonl"), str(at.held_out_cache), *teacher),
    )
    yield Step(
        purpose="See what a cache holds",
        program=COMMAND,
        arguments=("info", str(at.scenes_cache)),
    )
    yield Step(
        purpose="Prove it: every checksum, and some rows embedded again by the live teacher",
        program=COMMAND,
        arguments=("verify", str(at.scenes_cache), "--sample", str(_ROWS_ASKED_AGAIN), *seed),
    )
    yield Step(
        purpose="Ask which captions are wrong: the teacher sees it, though nobody told it",
        program=COMMAND,
        arguments=("mismatched", str(at.scenes_cache), "--limit", "3"),
    )


def _training_steps(config: TourConfig) -> Iterator[Step]:
    at = Places(config.out)

    def train(out: Path, *weights: str) -> tuple[str, ...]:
        return (
            *("train", str(at.scenes_cache), "--student", str(at.start), "--out", str(out)),
            *("--steps", str(config.num_steps), "--global-batch-size", "128", "--lr", "1e-3"),
            # The clean scenes are the test: captions held out of these would be as wrong as the rest.
            *("--warmup-steps", str(config.num_steps // 10), "--val-share", "0"),
            *("--seed", str(config.seed)),
            *(word for weight in weights for word in ("--weight", weight)),
        )

    yield Step(
        purpose="Train a student on these captions alone, as if there were no teacher",
        program=COMMAND,
        arguments=train(at.contrastive, "contrastive=1", "soft=0", "cosine=0"),
    )
    yield Step(
        purpose="Train the same student, from the same start, from the cached embeddings",
        program=COMMAND,
        arguments=train(at.distilled),
    )


def _evaluation_steps(config: TourConfig) -> Iterator[Step]:
    at = Places(config.out)
    models = {
        "start": ("Test where both students started", at.start),
        "contrastive": ("Test the student of the captions alone", at.contrastive / "model"),
        "distilled": ("Test the distilled student", at.distilled / "model"),
    }
    for name, (purpose, model) in models.items():
        yield Step(
            purpose=f"{purpose}, on the scenes that no training showed",
            program=COMMAND,
            arguments=("eval", str(model), str(at.held_out_cache), "--split", "all", "--json"),
            into=at.evaluation(name),
        )


def _page_step(config: TourConfig) -> Step:
    at = Places(config.out)
    texts = (word for text in _QUERIES for word in ("--text", text))
    keys = (f"held-out-{config.seed}-{i:06d}" for i in (3, 8))
    return Step(
        purpose="Look at what the teacher finds near some texts and some scenes, as a page too",
        program=COMMAND,
        arguments=(
            *("neighbors", str(at.held_out_cache), *texts),
            *(word for key in keys for word in ("--key", key)),
            *("-k", "6", "--html", str(at.page)),
        ),
    )
