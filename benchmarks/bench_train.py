"""What a training step costs: beside the same step on tensors in memory, and with the teacher online.

    python benchmarks/bench_train.py [--batch-size 32] [--steps 5] [--device D] [--json] [--quick]

Three processes make the same steps of a true-size Base student on targets of a true-size SO400M (random
weights; the cost is that of real ones): `cached` as `train` does, pixels decoded and targets read as it
goes; `memory` with every tensor at hand beforehand; `online` with the teacher's forward passes in the
step instead of its targets. `options` compares steps with settings that change their cost, pixels from the
corpus and targets from the cache. A last part is the chunked sigmoid loss at 32,768 x 32,768 by itself.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arguments import benchmark_parser
from hardware import machine, peak_resident_bytes
from make_checkpoint import make_checkpoint
from photographs import draw_photograph

MODES = ("cached", "memory", "online")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kept pixels": {"pixels": "kept"},
    "gradient caching, four pieces": {"num_pieces": 4},
    "activations recomputed": {"gradient_checkpointing": True},
    "compiled": {"compile": True},
    "moving average": {"ema": 0.9999},
    "patch dropout 0.5": {"patch_dropout": 0.5},
    "softmax affinity and relations": {"weights": {"affinity": 1.0, "relations": 1.0}},
    "batch selected from twice as many": {"select": "learnability", "super_batch": 2},
}
"""Settings whose cost a step shows; num_pieces is turned into a micro-batch size."""

SHORT_SIDE = 288
WARM_STEPS = 1


def main() -> None:
    parser = benchmark_parser(__doc__, quick="tiny models, few pairs")
    parser.add_argument("--student", default="base-patch16-224", help="architecture")
    parser.add_argument("--teacher", default="so400m-patch14-224", help="architecture")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batch-size", type=int)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--images", type=int, default=64, help="in the cache")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--decode-workers", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--pairs", type=int, default=32_768, help="rows and columns of the loss")
    parser.add_argument("--only", choices=["step", "options", "loss"])
    parser.add_argument("--option", choices=OPTIONS, default="plain", help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=[*MODES, "loss"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        found = measure_loss(args) if args.mode == "loss" else measure_step(args)
        print(json.dumps(found))
        return
    if args.quick:
        args.student = args.teacher = "tiny-patch16-64"
        args.batch_size, args.steps, args.images, args.pairs = 8, 3, 16, 1024
    print(machine("torch", "transformers", "numpy"))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        if args.only != "loss":
            prepare(args, Path(folder))
        if args.only in (None, "step"):
            found["step"] = run_steps(args, Path(folder))
        if args.only in (None, "options"):
            found["options"] = run_options(args, Path(folder), found.get("step", {}).get("cached"))
        if args.only in (None, "loss"):
            found["loss"] = in_process(args, Path(folder), "loss")
            show_loss(args, found["loss"])
    if args.json:
        print(json.dumps(found))


def run_options(
    args: argparse.Namespace, work: Path, plain: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a measurement of each option, each in a process of its own; ``plain`` may be measured."""
    found: dict[str, Any] = {}
    print(f"\n{args.student}, {args.batch_size} images a step, by option")
    print("| | s a step | to plain | waiting | peak memory |")
    print("|---|---|---|---|---|")
    for option in OPTIONS:
        given = argparse.Namespace(**{**vars(args), "option": option})
        is_measured = option == "plain" and plain is not None
        one = found[option] = dict(plain) if is_measured else in_process(given, work, "cached")
        one["to_plain"] = one["step_s"] / found["plain"]["step_s"]
        print(
            f"| {option} | {one['step_s']:.3f} | {one['to_plain']:.2f} | {one['wait_s']:.4f} | "
            f"{one['peak_bytes'] / 1e9:.2f} GB |",
            flush=True,
        )
    return found


def run_steps(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    found: dict[str, Any] = {mode: in_process(args, work, mode) for mode in MODES}
    found["ratio_to_memory"] = found["cached"]["step_s"] / found["memory"]["step_s"]
    found["online_to_cached"] = found["online"]["step_s"] / found["cached"]["step_s"]
    found["reading_share"] = found["cached"]["read_targets_s"] / found["cached"]["step_s"]
    found["limit_s"] = arithmetic_limit(args, work)
    show_steps(args, found)
    return found


def prepare(args: argparse.Namespace, work: Path) -> None:
    """Write checkpoints, pictures, and the cache of the teacher's targets."""
    from siglip2_cache.precompute.build import BuildConfig, build
    from siglip2_cache.precompute.planning.config import PlanConfig

    teacher = make_checkpoint(args.teacher, work / "teacher", dtype="bfloat16")
    make_checkpoint(args.student, work / "student", dtype="float32", seed=1)
    (work / "images").mkdir()
    for i in range(args.images):
        (work / "images" / f"{i:04d}.jpg").write_bytes(draw_photograph(i))
        (work / "images" / f"{i:04d}.txt").write_text(f"photograph number {i} of a benchmark")
    plan = PlanConfig(sources=(str(work / "images"),), num_views=args.views)
    config = BuildConfig(
        plan=plan,
        cache=work / "cache",
        teacher=str(teacher),
        device=args.device,
        keep_pixels=SHORT_SIDE,
    )
    build(config)


def in_process(args: argparse.Namespace, work: Path, mode: str) -> dict[str, Any]:
    """Measure in a process of its own, so that memory is its own."""
    settings = {**vars(args), "mode": mode, "work": work, "json": False, "only": None}
    command = [sys.executable, __file__]
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            command.append(flag)
        elif value not in (None, False):
            command += [flag, str(value)]
    command = [part for part in command if part != "--quick"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_step(args: argparse.Namespace) -> dict[str, Any]:
    from siglip2_cache.progress import Display
    from siglip2_cache.student.config import TrainConfig
    from siglip2_cache.student.training.progress import TrainProgress
    from siglip2_cache.student.training.trainer import train

    times: list[dict[str, float]] = []
    settings: dict[str, Any] = {
        "pixels": "corpus",
        "micro_batch_size": args.micro_batch_size,
        "compile": args.compile,
        **OPTIONS[args.option],
    }
    if num_pieces := settings.pop("num_pieces", None):
        settings["micro_batch_size"] = max(1, args.batch_size // num_pieces)
    out = args.work / f"run-{args.mode}-{args.option}"
    config = TrainConfig(
        cache=args.work / "cache",
        student=str(args.work / "student"),
        out=out,
        steps=args.steps + WARM_STEPS,
        global_batch_size=args.batch_size,
        device=args.device,
        dtype=args.dtype,
        decode_workers=args.decode_workers,
        check_pixels="always",
        val_share=0.0,
        save_every=args.steps + WARM_STEPS,
        **settings,
    )
    started = time.perf_counter()
    train(config, progress=TrainProgress(Display()), trainer_class=kind_of(args, times))
    whole_run_s = time.perf_counter() - started
    shutil.rmtree(out)  # some GB each, of a true-size student
    timed = times[WARM_STEPS:]
    return {
        "step_s": statistics.median(each["whole"] for each in timed),
        "steps_s": [each["whole"] for each in timed],
        "wait_s": statistics.median(each["wait"] for each in timed),
        "read_targets_s": statistics.median(each["read"] for each in timed),
        "teacher_s": statistics.median(each["teacher"] for each in timed),
        "peak_bytes": peak_bytes(args),
        "whole_run_s": whole_run_s,
    }


def peak_bytes(args: argparse.Namespace) -> int:
    """Return the most memory used: of the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available() and args.device != "cpu":
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def kind_of(args: argparse.Namespace, times: list[dict[str, float]]) -> Any:
    """Return a Trainer whose steps are timed, from batch to batch, in one of the modes."""
    import torch

    from siglip2_cache.student.training.trainer import Trainer

    class Timed(Trainer):
        def batches(self, loader: Any, done: int) -> Iterator[Any]:
            source = super().batches(loader, done)
            if args.mode == "memory":
                source = iter(list(source))
            teacher = load_teacher(args) if args.mode == "online" else None
            while True:
                started = time.perf_counter()
                batch = next(source, None)
                if batch is None:
                    return
                waited = time.perf_counter() - started
                if args.mode == "memory":
                    batch.wait_s = 0.0
                asked = time.perf_counter()
                if teacher is not None:
                    compute_targets(teacher, self, batch)
                teacher_s = time.perf_counter() - asked
                yield batch
                if torch.cuda.is_available() and args.device != "cpu":
                    torch.cuda.synchronize()
                times.append(
                    {
                        "whole": time.perf_counter() - started,
                        "wait": waited,
                        "read": batch.read_targets_s,
                        "teacher": teacher_s,
                    }
                )

    return Timed


def load_teacher(args: argparse.Namespace) -> Any:
    from siglip2_cache.precompute.teacher.siglip_teacher import SiglipTeacher
    from siglip2_cache.siglip import resolve_checkpoint

    return SiglipTeacher(resolve_checkpoint(str(args.work / "teacher")), device=args.device)


def compute_targets(teacher: Any, training: Any, batch: Any) -> None:
    """Compute a batch's targets. Pixels are decoded at the student's size and taken as they are where
    the teacher's is the same: what is measured is its forward pass."""
    import torch

    from siglip2_cache.student.data.batch import BatchTargets

    H, W = teacher.image.size
    pixels = batch.pixels_N.numpy()
    if pixels.shape[1:3] != (H, W):
        raise SystemExit("error: student and teacher must take pixels of one size here")
    texts = [f"photograph number {row} of a benchmark" for row in batch.text_rows_M]
    images, captions = teacher.embed_images(pixels), teacher.embed_texts(texts)
    found = (torch.from_numpy(rows()) for rows in (images, captions))
    batch.targets = [BatchTargets(image_NE=next(found), text_ME=next(found))]


def arithmetic_limit(args: argparse.Namespace, work: Path) -> float:
    """Return the seconds that the step's matrix products take at the rate of a large one."""
    from teacher_peak import matmul_flops_per_s

    from siglip2_cache.siglip import find_architecture, resolve_device

    device = resolve_device(args.device)
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    student = find_architecture(str(work / "student"))
    flops = student.flops_of_view + student.flops_of_text
    return (
        3 * flops * args.batch_size / matmul_flops_per_s(device, dtype)
    )  # backward is two forwards


def measure_loss(args: argparse.Namespace) -> dict[str, Any]:
    """Return time and memory of the soft loss, forward and backward, N x N pairs of width 768."""
    import torch

    from siglip2_cache.siglip import resolve_device
    from siglip2_cache.student.losses.pair_labels import SoftLabels
    from siglip2_cache.student.losses.pairwise_sum import pairwise_sum

    N, D, E = args.pairs, 768, 1152
    device = resolve_device(args.device)
    generator = torch.Generator().manual_seed(0)

    def rows(width: int) -> Any:
        return torch.randn(N, width, generator=generator).to(device)

    image_ND, text_ND = rows(D).requires_grad_(), rows(D).requires_grad_()
    teachers = rows(E), rows(E)
    before = peak_bytes(args)
    started = time.perf_counter()
    logit = {"scale": 115.0, "bias": -16.8}
    labels = SoftLabels(teacher_image_NE=teachers[0], teacher_text_ME=teachers[1], **logit)
    (pairwise_sum(image_ND, text_ND, labels, **logit).loss_sum / N).backward()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {
        "pairs": [N, N],
        "seconds": seconds,
        "extra_peak_bytes": peak_bytes(args) - before,
        "one_matrix_bytes": 4 * N * N,
    }


def show_steps(args: argparse.Namespace, found: dict[str, Any]) -> None:
    print(f"\n{args.student}, {args.batch_size} images a step, teacher {args.teacher}")
    print("| | s a step | waiting | reading targets | teacher | peak memory |")
    print("|---|---|---|---|---|---|")
    for mode in MODES:
        one = found[mode]
        print(
            f"| {mode} | {one['step_s']:.3f} | {one['wait_s']:.4f} | {one['read_targets_s']:.5f} | "
            f"{one['teacher_s']:.3f} | {one['peak_bytes'] / 1e9:.2f} GB |"
        )
    print(f"cached / memory {found['ratio_to_memory']:.3f}")
    print(f"online / cached {found['online_to_cached']:.2f}")
    print(f"reading targets {found['reading_share']:.4%} of a step")
    share = found["limit_s"] / found["cached"]["step_s"]
    print(f"arithmetic limit {found['limit_s']:.3f} s a step; reached {share:.1%}")


def show_loss(args: argparse.Namespace, found: dict[str, Any]) -> None:
    extra, whole = found["extra_peak_bytes"] / 1e6, found["one_matrix_bytes"] / 1e6
    print(
        f"\nsoft loss of {args.pairs:,} x {args.pairs:,} pairs, forward and backward: "
        f"{found['seconds']:.2f} s, {extra:,.0f} MB more memory; one matrix of pairs in float32 "
        f"would be {whole:,.0f} MB"
    )


if __name__ == "__main__":
    main()
