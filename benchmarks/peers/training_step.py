"""A training step without a teacher, by open_clip and by plain transformers, beside ours with cached targets.

    python benchmarks/peers/training_step.py [--batch-size 32] [--steps 5] [--open-clip FOLDER] [--quick]

All train a true-size SigLIP 2 Base from random weights, both towers, float32, AdamW. `open_clip` is its
ViT-B-16-SigLIP2 with its SigLipLoss, `transformers` its SiglipModel with the loss that it returns; both
have pixels and token ids in memory. Ours are the steps of bench_train.py, with the default objective:
`memory` with all tensors at hand, `cached` with decoding and reading, `online` with a SO400M teacher in
the step instead of its cached targets.

FOLDER has open_clip, if the environment has not: pip install --no-deps --target FOLDER open-clip-torch
timm ftfy torchvision==VERSION, where VERSION fits torch. Without open_clip its row is left out.
"""

import argparse
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from arguments import benchmark_parser
from bench_train import WARM_STEPS, peak_bytes
from hardware import machine

TEXT_LENGTH = 64
PEERS = ("open_clip", "transformers")
OURS = ("memory", "cached", "online")


def main() -> None:
    parser = benchmark_parser(__doc__, quick="tiny models, 8 pairs, 3 steps")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--open-clip", type=Path, help="folder with open_clip and what it needs")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.batch_size, args.steps = 8, 3
    if args.peer:
        print(json.dumps(measure(args)))
        return
    print(machine("torch", "transformers"))
    found: dict[str, Any] = {}
    for peer in PEERS:
        if peer == "transformers" or has_open_clip(args.open_clip):
            found[peer] = in_process(args, peer)
    found |= ours(args)
    show(args, found)
    if args.json:
        print(json.dumps(found))


def has_open_clip(folder: Path | None) -> bool:
    if folder is not None:
        sys.path.append(str(folder))
    return importlib.util.find_spec("open_clip") is not None


def in_process(args: argparse.Namespace, peer: str) -> dict[str, Any]:
    """Measure a peer in a process of its own, so that memory is its own."""
    command = [sys.executable, __file__, "--peer", peer, "--device", args.device]
    command += ["--batch-size", str(args.batch_size), "--steps", str(args.steps)]
    command += ["--open-clip", str(args.open_clip)] if args.open_clip else []
    command += ["--quick"] if args.quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """Return the steps of bench_train.py."""
    script = str(Path(__file__).parents[1] / "bench_train.py")
    command = [sys.executable, script, "--only", "step", "--json", "--device", args.device]
    command += ["--batch-size", str(args.batch_size), "--steps", str(args.steps)]
    command += ["--dtype", "float32"] + (["--quick"] if args.quick else [])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])["step"]
    return {f"siglip2-cache, {mode}": found[mode] for mode in OURS}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of each step of a peer, and the largest memory."""
    import torch

    torch.manual_seed(0)
    step = (open_clip_step if args.peer == "open_clip" else transformers_step)(args)
    seconds: list[float] = []
    for _ in range(WARM_STEPS + args.steps):
        started = time.perf_counter()
        step()
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    timed = seconds[WARM_STEPS:]
    return {
        "step_s": statistics.median(timed),
        "steps_s": timed,
        "peak_bytes": peak_bytes(args),
    }


def open_clip_step(args: argparse.Namespace) -> Callable[[], None]:
    import torch

    if args.open_clip is not None:
        sys.path.append(str(args.open_clip))
    declare_torchvision()
    import open_clip
    from open_clip.loss import SigLipLoss

    size = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 16},
    }
    size |= {"text_cfg": {"context_length": TEXT_LENGTH, "width": 64, "heads": 4, "layers": 2}}
    if args.quick:
        model: Any = open_clip.CustomTextCLIP(**size, init_logit_bias=-10.0)
    else:
        model = open_clip.create_model("ViT-B-16-SigLIP2", precision="fp32")
    model.to(args.device)
    loss_of = SigLipLoss()
    pixels, ids = batch_of(args, side=64 if args.quick else 224)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        found = model(pixels, ids)
        if isinstance(found, dict):
            found = tuple(found.values())
        loss_of(*found).backward()
        optimizer.step()

    return step


def declare_torchvision() -> None:
    """Declare torchvision's compiled operators, whose build for CUDA does not load with a torch for the CPU.

    open_clip imports torchvision and its steps call none of them.
    """
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or torch.version.cuda or not found.submodule_search_locations:
        return
    source = Path(found.submodule_search_locations[0], "_meta_registrations.py").read_text()
    names = re.findall(r'(?:register_meta\(|register_fake\()"(?:torchvision::)?(\w+)"', source)
    operators = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(names)):
        operators.define(f"{name}(Tensor x) -> Tensor")
    globals()["_operators"] = operators  # they go with the library


def transformers_step(args: argparse.Namespace) -> Callable[[], None]:
    import torch
    from make_checkpoint import checkpoint_config
    from transformers import SiglipConfig, SiglipModel

    arch = "tiny-patch16-64" if args.quick else "base-patch16-224"
    config = SiglipConfig(**checkpoint_config(arch, 512 if args.quick else 256_000, "float32"))
    model = SiglipModel(config).to(args.device).train()
    pixels, ids = batch_of(args, side=64 if args.quick else 224)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, pixel_values=pixels, return_loss=True).loss.backward()
        optimizer.step()

    return step


def batch_of(args: argparse.Namespace, *, side: int) -> tuple[Any, Any]:
    import torch

    pixels = torch.rand(args.batch_size, 3, side, side, device=args.device) * 2 - 1
    return pixels, torch.randint(0, 500, (args.batch_size, TEXT_LENGTH), device=args.device)


def show(args: argparse.Namespace, found: dict[str, Any]) -> None:
    arch = "tiny models" if args.quick else "SigLIP 2 Base, patches of 16, 224 px"
    print(f"\n{arch}, {args.batch_size} pairs a step, float32, {args.device}\n")
    print("| | s a step, median | pairs/s | each step | peak memory |")
    print("|---|---|---|---|---|")
    for name, one in found.items():
        each = ", ".join(f"{seconds:.2f}" for seconds in one["steps_s"])
        rate = args.batch_size / one["step_s"]
        print(
            f"| {name} | {one['step_s']:.3f} | {rate:.2f} | {each} | {one['peak_bytes'] / 1e9:.2f} GB |"
        )
    if "open_clip" not in found:
        print("\nopen_clip is not installed; --open-clip FOLDER names a folder that has it")


if __name__ == "__main__":
    main()
