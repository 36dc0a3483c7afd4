"""A loss term of one's own: the student keeps the teacher's similarities between images.

    python examples/custom_objective.py FOLDER [--images 2000] [--steps 200]

Generates scenes in FOLDER, builds a cache of them, trains two students, without and with the term, and prints
what each finds. Shape letters: N = images of this process, G = those of all processes, E = width.
"""

import argparse
from pathlib import Path

import torch.nn.functional as F

from siglip2_cache import (
    BuildConfig,
    EvalConfig,
    LossInputs,
    LossTerm,
    PlanConfig,
    TermValue,
    TrainConfig,
    build,
    evaluate,
    register_term,
    train,
)
from siglip2_cache.demo.architecture import CHECKPOINTS
from siglip2_cache.demo.corpus import CorpusConfig, write_corpus


def image_structure(inputs: LossInputs, objective: object) -> TermValue:
    """Return the squared error of the cosines between the images of the batch, a mean over pairs.

    It is this process's share: a sum over its own images, divided by counts of the whole batch, so that the
    shares of all processes add up to the loss. Cosines do not depend on the widths, so no map is needed.
    """
    student_GD, teacher_GE = inputs.all_images()
    student_NG = inputs.image_ND @ student_GD.T
    teacher_NE = F.normalize(inputs.teacher_image_NE.float(), dim=-1)
    teacher_NG = teacher_NE @ F.normalize(teacher_GE.float(), dim=-1).T
    num_pairs = inputs.counts.num_images * max(1, len(student_GD) - 1)  # not with themselves
    return TermValue(((student_NG - teacher_NG) ** 2).sum() / num_pairs)


register_term(
    LossTerm(
        name="image_structure",
        compute=image_structure,
        default_weight=lambda scale: 0.0,
        needs_captions=False,
        needs_image_tower=True,
        needs_all_images=True,
    )
)


def main() -> None:
    """Build, train without and with the term, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()

    scenes, tests = args.folder / "scenes", args.folder / "tests"
    if not scenes.exists():
        faults = {"missing_rate": 0.3, "mismatched_rate": 0.45}
        write_corpus(CorpusConfig(num_images=args.images, **faults), scenes)
        write_corpus(CorpusConfig(num_images=max(20, args.images // 4), held_out=True), tests)
    for corpus in (scenes, tests):
        plan = PlanConfig(sources=(str(corpus / "captions.jsonl"),))
        build(BuildConfig(plan=plan, cache=f"{corpus}-cache", teacher=str(CHECKPOINTS / "teacher")))

    print(f"{'':<20} {'image to text':>14} {'text to image':>14} {'10 nearest images':>18}")
    for name, weight in (("without the term", 0.0), ("with the term", 30.0)):
        run = args.folder / name.replace(" ", "-")
        config = TrainConfig(
            cache=f"{scenes}-cache",
            student=str(CHECKPOINTS / "student"),
            out=run,
            steps=args.steps,
            global_batch_size=min(128, args.images // 2),
            lr=1e-3,
            val_share=0.0,
            weights={"image_structure": weight},
        )
        train(config)
        compared = evaluate(EvalConfig(model=f"{run}/model", cache=f"{tests}-cache", split="all"))
        model = compared.found["columns"]["model"]
        recall = model["retrieval"]["all"]
        print(
            f"{name:<20} {recall['image_to_text']['1']:>14.3f} {recall['text_to_image']['1']:>14.3f} "
            f"{model['neighbour_overlap']:>18.3f}"
        )


if __name__ == "__main__":
    main()
