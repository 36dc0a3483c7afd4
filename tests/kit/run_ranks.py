"""Steps of a training in two processes, for tests that compare them with one.

python run_ranks.py STUDENT NAFLEX_STUDENT CORPUS OUT: writes OUT, a dictionary of what each scenario gave.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers.models.siglip.modeling_siglip
import transformers.models.siglip2.modeling_siglip2  # noqa: F401 - before the processes part
from torch.distributed import TCPStore

from kit.patience import PATIENCE_S
from kit.steps import Case, gradients_of, part_of
from siglip2_cache.images.image import ImageRef
from siglip2_cache.images.image_bytes import ImageLocation
from siglip2_cache.siglip import load_trainable, resolve_checkpoint
from siglip2_cache.store.format.teacher_record import PatchSettings
from siglip2_cache.student.config import TrainConfig
from siglip2_cache.student.distributed import Ranks, join_ranks, leave_ranks
from siglip2_cache.student.evaluation.embeddings import Embeddings, student_embeddings
from siglip2_cache.student.positives import Positives
from siglip2_cache.student.training.gradient_cache import GradientCache
from siglip2_cache.student.training.out_of_memory import DoesNotFit
from siglip2_cache.student.training.parameter_groups import make_groups
from siglip2_cache.student.training.schedule import Optimizer, Schedule

NUM_STEPS = 20


@dataclass(frozen=True)
class Scenario:
    """A global batch and how two processes share it."""

    settings: dict[str, Any]
    """Of its Case."""

    is_naflex: bool = False
    num_images: int = 4
    """Of the first process; the second has the others."""

    num_texts: int = 2
    """Of the first process."""

    micro_batch_size: int | None = None

    most_images: int | None = None
    """Of a pass with a graph that the second process has memory for; None: any number."""

    fails_backward: bool = False
    """Whether memory runs out in the backward pass, not after the forward pass."""


UNEVEN: dict[str, Any] = {"captions": (0, -1, 1, 0, 1, -1, 2)}
"""Three captions with the first process, two with the second; text 1 is shared between them, and text 3
is of an image that could not be read."""

PATCHES = PatchSettings(grid=2, dim=40, width=48, rms=1.7, kept=1.0, num_images=1)

SCENARIOS = {
    "uneven": Scenario(UNEVEN),
    "uneven in pieces": Scenario(UNEVEN, micro_batch_size=2),
    "two pieces against one": Scenario(UNEVEN, micro_batch_size=3),
    "one runs out of memory": Scenario(UNEVEN, most_images=2),
    "one runs out of memory in its second pass": Scenario(
        UNEVEN, num_images=2, micro_batch_size=3, most_images=1
    ),
    "one runs out of memory in a backward pass": Scenario(
        UNEVEN, most_images=2, fails_backward=True
    ),
    "one runs out of memory in a backward pass in pieces": Scenario(
        UNEVEN, micro_batch_size=3, num_images=2, most_images=2, fails_backward=True
    ),
    "one has no text": Scenario({"captions": (0, 1, 0, 2, -1, -1, -1)}, num_texts=4),
    "one has no image": Scenario(UNEVEN, num_images=7),
    "one has no image, in pieces": Scenario(UNEVEN, num_images=7, micro_batch_size=2),
    "one has nothing, bank of hard labels": Scenario(
        {**UNEVEN, "bank_labels": "hard"}, num_images=0, num_texts=0
    ),
    "captions weighed": Scenario(
        {**UNEVEN, "bank_labels": "hard", "positives": Positives("weighed")}, micro_batch_size=2
    ),
    "similar ignored": Scenario({**UNEVEN, "bank_labels": "hard", "ignore_similar": 0.35}),
    "similar ignored, one has no image": Scenario(
        {**UNEVEN, "ignore_similar": 0.35}, num_images=7, micro_batch_size=2
    ),
    "two teachers": Scenario({**UNEVEN, "num_teachers": 2}, micro_batch_size=2),
    "two teachers, one has a single image, which the second lacks": Scenario(
        {**UNEVEN, "num_teachers": 2, "captions": (0, 1, -1, 2), "ignore_similar": 0.35},
        num_images=2,
        num_texts=1,
    ),
    "two captions an image": Scenario(
        {
            "captions": ((0, 1), (-1, -1), (2, 0), (3, -1), (4, 3), (-1, -1), (1, 5)),
            "num_texts": 6,
            "bank_labels": "hard",
            "positives": Positives("weighed"),
            "ignore_similar": 0.35,
            "num_teachers": 2,
        },
        num_images=3,
        num_texts=3,
        micro_batch_size=2,
    ),
    "text tower": Scenario({**UNEVEN, "towers": "text"}, micro_batch_size=2),
    "text tower, one has no text": Scenario(
        {"captions": (0, 1, 0, 2, -1, -1, -1), "towers": "text", "projection": "pca"}, num_texts=4
    ),
    "naflex, one has nothing": Scenario(
        {**UNEVEN, "towers": "image", "projection": "pca"}, is_naflex=True, num_images=7
    ),
    "naflex image tower": Scenario(
        {**UNEVEN, "towers": "image", "projection": "pca", "bank_labels": "hard"},
        is_naflex=True,
        micro_batch_size=2,
    ),
    "dense targets": Scenario({**UNEVEN, "patches": PATCHES}, micro_batch_size=2),
    "dense targets, naflex, one has nothing": Scenario(
        {**UNEVEN, "towers": "image", "projection": "pca", "patches": PATCHES},
        is_naflex=True,
        num_images=7,
    ),
}


def first_gradient(scenario: Scenario, student: Path, ranks: Ranks | None) -> Any:
    """Return the loss of a batch and every gradient, in float64; ranks None: in this process alone."""
    case = Case(student, **scenario.settings)
    distiller = case.distiller()
    gradients = _gradients(case, distiller, scenario, ranks)
    if ranks is not None and ranks.rank == 1 and scenario.most_images is not None:
        limit_memory(distiller, scenario.most_images, fails_backward=scenario.fails_backward)
    while True:
        try:
            loss = gradients.compute(*_share(case, scenario, 0, torch.float64, ranks))
        except DoesNotFit:
            gradients.shrink((gradients.micro_batch_size or 4) // 2)
        else:
            return loss.read(), gradients_of(distiller)


def limit_memory(distiller: Any, most_images: int, *, fails_backward: bool) -> None:
    """Let a pass of more images with a graph run out of memory after its forward pass, or on the way back."""
    embed = distiller.embed

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    def limited(micro_batch: Any) -> Any:
        found = embed(micro_batch)
        if torch.is_grad_enabled() and micro_batch.num_images > most_images:
            if not fails_backward:
                fail()
            found.image_ND.register_hook(fail)
        return found

    distiller.embed = limited


def loss_curve(scenario: Scenario, student: Path, ranks: Ranks | None) -> list[float]:
    """Return the loss of 20 steps in float32."""
    case = Case(student, **scenario.settings)
    distiller = case.distiller(torch.float32)
    gradients = _gradients(case, distiller, scenario, ranks)
    config = TrainConfig(
        cache=Path("C"), student="S", out=Path("R"), lr=3e-3, projection_lr=1e-2, weight_decay=1e-3
    )
    optimizer = Optimizer(distiller, make_groups(distiller, config))
    schedule = Schedule(steps=NUM_STEPS, warmup_steps=3, alone_steps=2)
    curve: list[float] = []
    for step in range(1, NUM_STEPS + 1):
        loss = gradients.compute(*_share(case, scenario, step % 3, torch.float32, ranks))
        torch.nn.utils.clip_grad_norm_(distiller.parameters(), 1.0)
        optimizer.step(schedule, step, loss.is_finite)
        curve.append(loss.read().total)
    return curve


def _gradients(
    case: Case, distiller: Any, scenario: Scenario, ranks: Ranks | None
) -> GradientCache:
    return GradientCache(
        distiller,
        case.objectives(),
        ranks or Ranks(),
        micro_batch_size=scenario.micro_batch_size if ranks else None,
        map_ED=case.fixed_map(),
    )


def _share(
    case: Case, scenario: Scenario, step: int, dtype: torch.dtype, ranks: Ranks | None
) -> Any:
    batch = case.batch(step)
    labels = case.all_labels(batch, dtype)
    if ranks is None:
        return batch, labels
    cuts = [0, scenario.num_images, len(case.captions)]
    images = slice(cuts[ranks.rank], cuts[ranks.rank + 1])
    texts = [0, scenario.num_texts, case.num_texts]
    return part_of(batch, labels, images, texts, ranks.rank)


def embeddings(student: Path, corpus: Path, ranks: Ranks | None) -> Embeddings:
    """Return a student's embeddings of five images, one of them broken, and three texts, two a batch."""
    checkpoint = resolve_checkpoint(str(student))
    paths = sorted(corpus.glob("*.png"))
    return student_embeddings(
        load_trainable(checkpoint, towers="both", is_new=False),
        checkpoint,
        [ImageRef(row, ImageLocation(path=path), ()) for row, path in enumerate(paths)],
        ["a cat", "two dogs", "nothing"],
        device="cpu",
        compute_dtype="float32",
        batch_size=2,
        num_workers=0,
        ranks=ranks,
    )


def run_all(student: Path, naflex_student: Path, corpus: Path, ranks: Ranks) -> dict[str, Any]:
    """Return what every scenario gives."""
    found: dict[str, Any] = {"embeddings": embeddings(student, corpus, ranks)}
    for name, scenario in SCENARIOS.items():
        of = naflex_student if scenario.is_naflex else student
        found[name] = first_gradient(scenario, of, ranks)
    for name in ("uneven", "two pieces against one"):
        found[f"{name}, curve"] = loss_curve(SCENARIOS[name], student, ranks)
    return found


def _in_processes(run: Callable[[int], None]) -> None:
    """Run in two processes, which part here; exit with 1 where one fails."""
    children: list[int] = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            signal.alarm(
                int(PATIENCE_S)
            )  # a process that waits for the other in vain dies by itself
            status = 1
            try:
                run(rank)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(int(any(statuses)))


def main() -> None:
    student, naflex_student, corpus, out = map(Path, sys.argv[1:])
    # Its port is taken from here on, so that nobody else takes it before the processes have begun.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def run(rank: int) -> None:
        import traceback

        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE="2",
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(store.port),
            TORCHELASTIC_USE_AGENT_STORE="True",  # as torchrun says it: the store is there
        )
        torch.set_num_threads(1)
        try:
            ranks = join_ranks("cpu")
            found = run_all(student, naflex_student, corpus, ranks)
        except BaseException:
            traceback.print_exc()
            raise
        if ranks.is_first:
            torch.save(found, out)
        leave_ranks()

    _in_processes(run)


if __name__ == "__main__":
    main()
