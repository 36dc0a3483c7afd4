"""Corpora, teachers, students and caches of bench_distillation."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from digits import write_digit_architecture, write_digits
from distillation_ways import CACHES, CLEAN, MISMATCHED, NOISES, only

from siglip2_cache.demo.corpus import CorpusConfig, write_corpus

CHECKPOINTS = Path(__file__).parents[1] / "demo" / "checkpoints"
CAPTIONS_VAGUE = 0.4
TEACHER_STEPS = 1500


@dataclass(frozen=True)
class World:
    """One kind of corpus, with its teacher and the start of its students."""

    name: str
    caches: Mapping[tuple[str, str], Path]
    """By noise and kind of cache."""

    held_out: Path
    teacher: Path
    student: Path
    from_scratch: bool
    measure: str
    """retrieval or zero_shot."""


def scenes_worlds(args: argparse.Namespace, work: Path, kinds: set[str]) -> list[World]:
    """Write the generated scenes and build their caches; return one world for each start."""
    caches: dict[tuple[str, str], Path] = {}
    teacher = CHECKPOINTS / "teacher"
    for noise, (missing, mismatched) in NOISES.items():
        config = CorpusConfig(
            num_images=args.images,
            seed=21,
            missing_rate=missing,
            mismatched_rate=mismatched,
            vague_rate=CAPTIONS_VAGUE,
        )
        folder = work / f"train-{missing}-{mismatched}"
        if not folder.exists():
            write_corpus(config, folder)
        caches |= make_caches(folder, teacher, noise, kinds)
    held_out = work / "held-out"
    if not held_out.exists():
        num_held_out = 100 if args.quick else 1000
        write_corpus(
            CorpusConfig(num_images=num_held_out, seed=22, held_out=True, vague_rate=0.0), held_out
        )
    held_out = make_cache(held_out, teacher)
    shipped = CHECKPOINTS / "student"
    starts = {"scenes": shipped, "scratch": shipped, "half": half_student(work / "half")}
    return [
        World(name, caches, held_out, teacher, start, name == "scratch", "retrieval")
        for name, start in starts.items()
    ]


def half_student(folder: Path) -> Path:
    """Return the shipped student cut to half its width, as ``student new --width 32`` does."""
    from siglip2_cache.student.smaller.new import NewStudentConfig, new_student

    if not folder.exists():
        new_student(NewStudentConfig(model=str(CHECKPOINTS / "student"), out=folder, width=32))
    return folder


def digits_world(args: argparse.Namespace, work: Path, kinds: set[str]) -> World:
    """Write the pairs of digits, train their teacher on clean captions, and build the caches."""
    student = write_digit_architecture("student", work / "student")
    clean = write_once(work / "teacher-corpus", num_images=2 * args.images, seed=1)
    teacher = train_teacher(args, work, clean)
    caches: dict[tuple[str, str], Path] = {}
    for noise in (MISMATCHED, CLEAN):
        folder = work / f"train-{NOISES[noise][1]}"
        write_once(folder, num_images=args.images, seed=2, mismatched=NOISES[noise][1])
        caches |= make_caches(folder, teacher, noise, kinds)
    num_held_out = 100 if args.quick else 1000
    held_out = write_once(work / "held-out", num_images=num_held_out, seed=3, held_out=True)
    return World(
        "digits",
        caches,
        make_cache(held_out, teacher, has_labels=True),
        teacher,
        student,
        from_scratch=True,
        measure="zero_shot",
    )


def write_once(
    folder: Path, *, num_images: int, seed: int, mismatched: float = 0.0, held_out: bool = False
) -> Path:
    if not folder.exists():
        settings = {"num_images": num_images, "seed": seed, "held_out": held_out}
        write_digits(folder, mismatched=mismatched, **settings)
    return folder


def train_teacher(args: argparse.Namespace, work: Path, corpus: Path) -> Path:
    """Return the folder of a model trained with the contrastive loss from random weights."""
    import torch

    from siglip2_cache.siglip import load_trainable, resolve_checkpoint
    from siglip2_cache.student.config import TrainConfig
    from siglip2_cache.student.training.trainer import train

    untrained = work / "untrained"  # its targets have weight 0
    if not untrained.exists():
        write_digit_architecture("student", untrained)
        torch.manual_seed(0)
        checkpoint = resolve_checkpoint(str(untrained), has_weights=False)
        load_trainable(checkpoint, towers="both", is_new=True).save_pretrained(untrained)
    architecture = write_digit_architecture("teacher", work / "architecture")
    train(
        TrainConfig(
            cache=make_cache(corpus, untrained),
            student=str(architecture),
            out=work / "teacher-run",
            from_scratch=True,
            weights=only(contrastive=1),
            teacher_scale=10.0,
            teacher_bias=-10.0,
            steps=args.steps if args.quick else TEACHER_STEPS,
            global_batch_size=args.batch_size,
            lr=1e-3,
            schedule="cosine",  # whatever the default is: all results are of this teacher
            decode_workers=0,
            val_share=0.0,
        )
    )
    return work / "teacher-run" / "model"


def make_caches(
    folder: Path, teacher: Path, noise: str, kinds: set[str]
) -> dict[tuple[str, str], Path]:
    """Return the caches of one corpus, by noise and kind."""
    return {(noise, kind): make_cache(folder, teacher, kind=kind) for kind in kinds}


def make_cache(
    folder: Path,
    teacher: Path,
    *,
    name: str = "teacher",
    kind: str = "1 view",
    has_labels: bool = False,
) -> Path:
    from siglip2_cache.precompute.build import BuildConfig, build
    from siglip2_cache.precompute.planning.config import PlanConfig

    cache = folder.with_name(f"{folder.name}-cache-{kind.replace(' ', '-')}")
    labels = {"labels": folder / "labels.json", "templates": folder / "templates.json"}
    plan = PlanConfig(
        sources=(str(folder / "captions.jsonl"),),
        view_min_area=0.5,
        **CACHES[kind],
        **(labels if has_labels else {}),
    )
    config = BuildConfig(
        plan=plan, cache=cache, teacher=str(teacher), teacher_name=name, decode_workers=0
    )
    build(config)
    return cache


def add_second_teacher(world: World, noise: str, teacher: Path) -> None:
    """Add the targets of another teacher to a cache of scenes."""
    cache = world.caches[noise, "1 view"]
    make_cache(cache.with_name(cache.name.removesuffix("-cache-1-view")), teacher, name="second")
