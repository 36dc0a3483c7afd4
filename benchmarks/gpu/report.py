"""Run the sections of the GPU benchmark, each in a process with a time limit; write the report as they go.

    benchmarks/gpu/run.sh [--device cuda] [--sizes full|tiny] [--only SECTION,...] [--out FOLDER]

A section prints Markdown; each line goes into the report at once. One that is cut off or fails leaves its
lines and one more that says so. The limits add up to eight minutes.
"""

import argparse
import datetime
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TextIO

HERE = Path(__file__).resolve().parent

LIMITS_S = {
    "prepare": 60,
    "tests": 75,
    "teacher": 110,
    "training": 150,
    "loss": 20,
    "feed": 45,
    "faiss": 20,
}
"""Seconds that each section may take; "prepare" makes what the others read."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", choices=["full", "tiny"], default="full")
    parser.add_argument("--only", help="sections, by commas; prepare comes first in any case")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    parser.add_argument("--limit", type=float, default=1.0, help="factor of all time limits")
    args = parser.parse_args()
    names = list(LIMITS_S) if args.only is None else ["prepare", *args.only.split(",")]
    unknown = [name for name in names if name not in LIMITS_S]
    if unknown:
        parser.error(f"there is no section {unknown[0]!r}; the sections: {', '.join(LIMITS_S)}")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"gpu_{card(args.device)}_{datetime.date.today():%Y%m}.md"
    started, is_whole = time.monotonic(), True
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as work, path.open("w") as report:
        write(report, *heading(args))
        for name in names:
            if name != "prepare":
                write(report, "", f"## {name.capitalize()}", "")
            is_whole &= run_section(name, Path(work), args, report)
        seconds = time.monotonic() - started
        write(
            report, "", f"All of it took {seconds:.0f} s{'' if is_whole else '; not all finished'}."
        )
    print(f"written: {path}", flush=True)
    return 0 if is_whole else 1


def write(report: TextIO, *lines: str) -> None:
    """Write lines to the report and to the terminal, durably."""
    for line in lines:
        print(line, flush=True)
        report.write(line + "\n")
    report.flush()
    os.fsync(report.fileno())


def run_section(name: str, work: Path, args: argparse.Namespace, report: TextIO) -> bool:
    """Run a section; return whether it finished. Whatever it printed is in the report."""
    command = [sys.executable, str(HERE / "sections.py"), name, "--work", str(work)]
    command += ["--device", args.device, "--sizes", args.sizes]
    limit_s = LIMITS_S[name] * args.limit
    is_late = False
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None

        def stop(*_: object) -> None:
            nonlocal is_late
            is_late = True
            os.killpg(process.pid, signal.SIGKILL)  # the processes it started, too

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        for line in process.stdout:
            write(report, line.rstrip("\n"))
        status = process.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
        if is_late:
            write(report, "", f"not finished: {name} was stopped after {limit_s:.0f} s")
        elif status != 0:
            errors.seek(0)
            last = [line for line in errors.read().splitlines() if line.strip()][-1:]
            write(report, "", f"not finished: {name} failed with status {status}: {''.join(last)}")
    return status == 0


def card(device: str) -> str:
    """Return the name of the device for that of the file: h200, cpu."""
    if not device.startswith("cuda"):
        return device
    import torch

    name = torch.cuda.get_device_name().lower().removeprefix("nvidia").strip()
    return re.sub(r"[^a-z0-9]+", "-", name)


def heading(args: argparse.Namespace) -> list[str]:
    from hardware import machine

    lines = [
        f"# On one {card(args.device)}: parity, speed and memory",
        "",
        f"`benchmarks/gpu/run.sh --device {args.device} --sizes {args.sizes}`, "
        f"{datetime.date.today()}, commit {commit()}.",
        "",
        f"Machine: {machine('torch', 'transformers', 'numpy', 'pillow')}.",
    ]
    if args.device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(0)
        lines.append(f"GPU: {properties.name}, {properties.total_memory / 2**30:.0f} GiB.")
    if args.sizes == "tiny":
        lines += ["", "**Tiny sizes: a trial of the program. The figures say nothing.**"]
    return lines


def commit() -> str:
    """Return the commit of the checkout; unknown without git."""
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
