"""The guided tour: the main commands, one after the other, on generated data.

Each command is printed as a user would type it, and run by the same code.
"""

import contextlib
import io
import json
import os
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import SettingError
from ..formatting import first_line, format_bytes, format_seconds
from ..store.io.foreign_files import is_stray
from ..store.io.local import LocalStorage
from . import corpus
from .picture import draw_picture
from .result import (
    CONTRASTIVE,
    DISTILLED,
    START,
    TEACHER,
    Result,
    read_result,
    table_lines,
    verdict,
)
from .steps import CORPUS, Step, TourConfig, TourPaths, checkpoint, tour_steps

_SETTINGS = "demo.json"
"""File of the tour's settings: the same tour resumes, a tour with other settings is refused."""

_THREADS = "OMP_NUM_THREADS"

Run = Callable[[Sequence[str]], int]
"""Runs siglip2-cache with arguments in this process; returns the exit status."""


def run_tour(config: TourConfig, run: Run) -> int:
    """Run every command of the tour and show the result; return the exit status.

    A stopped tour resumes; a finished one shows its result again.

    Raises:
        SettingError: the folder has other files, or a tour with other settings.
    """
    started = time.monotonic()
    _check_folder(config)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in _opening_lines(config):
        console.print(line)
    with _one_thread():
        status = _run_steps(config, run, console)
    if status:
        return status
    result = _read(config)
    _draw(config, result)
    console.print("\nResult", style="bold")
    for line in _closing_lines(config, result, time.monotonic() - started):
        console.print(line)
    return 0


def _run_steps(config: TourConfig, run: Run, console: Console) -> int:
    steps = tour_steps(config)
    for number, step in enumerate(steps, 1):
        console.print(f"\n{number}/{len(steps)}  {step.purpose}", style="bold")
        console.print(f"$ {step.as_typed()}", style="cyan")
        status = _run_step(step, run, console)
        if status:
            again = "to resume it run the demo again, to start anew remove"
            console.print(f"the tour ended at step {number}; {again} {config.out} first")
            return status
    return 0


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    """Let torch, which is imported later, use one thread, unless the user has set a number.

    Models this small gain little from a second thread. On busy cores two threads that wait for each other
    trained 28 images a second, one thread 780.
    """
    before = os.environ.get(_THREADS)
    os.environ.setdefault(_THREADS, "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]


def _check_folder(config: TourConfig) -> None:
    """Write the settings into a new folder, or compare them with those of the tour that is there."""
    out, wanted = config.out, _settings(config)
    if out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file; name a folder with --out")
    path = out / _SETTINGS
    if not path.exists():
        others = sorted(p.name for p in out.iterdir()) if out.exists() else []
        others = [n for n in others if n != f"{_SETTINGS}.partial" and not is_stray(n)]
        if others:
            raise SettingError(
                f"{out} has {others[0]} and no {_SETTINGS}, so it is not the folder of a demo; name a new "
                "folder with --out"
            )
        _write(path, json.dumps(wanted, indent=1) + "\n")
    try:
        found: Any = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise SettingError(
            f"{path} cannot be read ({first_line(error)}); remove {out}, or name another folder with --out"
        ) from None
    if found != wanted:
        raise SettingError(
            f"{out} is the folder of a demo with {_words(found)}, not {_words(wanted)}; remove it, or name "
            "another folder with --out"
        )


def _settings(config: TourConfig) -> dict[str, int]:
    return {"seed": config.seed, "images": config.num_images, "steps": config.num_steps}


def _words(settings: Any) -> str:
    return json.dumps(settings).replace('"', "").strip("{}")


def _opening_lines(config: TourConfig) -> Iterator[str]:
    yield (
        "A tour of siglip2-cache: generated pictures of two objects, a small teacher, and a student a fifth "
        "of its size."
    )
    yield (
        f"No network, no GPU; all files are written to {config.out}. After Ctrl-C, run it again to resume."
    )
    if config.is_quick:
        yield "--quick: a tenth of the images and steps, to test the commands; the results mean little."
    exports = list(_exports())
    if exports:
        yield "To type the commands yourself, first run (one thread is best for models this small):"
        yield from (f"$ export {each}" for each in exports)


def _exports() -> Iterator[str]:
    """Yield the variables that a shell needs for the commands."""
    programs = Path(sys.executable).parent
    found = [shutil.which(name) for name in ("siglip2-cache", "python")]
    if any(name is None or Path(name).parent != programs for name in found):
        yield f'PATH={shlex.quote(str(programs))}:"$PATH"'
    if _THREADS not in os.environ:
        yield f"{_THREADS}=1"


def _run_step(step: Step, run: Run, console: Console) -> int:
    if step.made is not None and step.made.exists():
        console.print(f"already done: {step.made} exists")
        return 0
    if step.into is not None:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            status = run(step.arguments)
        if not status:
            _write(step.into, output.getvalue())
        return status
    if step.program == CORPUS:
        assert step.made is not None
        if step.made.parent.exists():  # incomplete: its last file is missing
            console.print(f"incomplete, writing it again: {step.made.parent}")
            shutil.rmtree(step.made.parent)
        status = corpus.main(step.arguments)
    else:
        status = run(step.arguments)
    sys.stdout.flush()  # in a pipe, progress on stderr would overtake it
    return status


def _write(path: Path, text: str) -> None:
    files, partial = LocalStorage(path.parent), f"{path.name}.partial"
    files.write(partial, text.encode())
    files.rename(partial, path.name)


def _read(config: TourConfig) -> Result:
    at = TourPaths(config.out)
    return read_result(
        {
            START: at.evaluation("start"),
            CONTRASTIVE: at.evaluation("contrastive"),
            DISTILLED: at.evaluation("distilled"),
        },
        {
            TEACHER: checkpoint("teacher"),
            START: at.start,
            CONTRASTIVE: at.contrastive / "model",
            DISTILLED: at.distilled / "model",
        },
    )


def _draw(config: TourConfig, result: Result) -> None:
    at = TourPaths(config.out)
    runs = {CONTRASTIVE: at.contrastive, DISTILLED: at.distilled}
    metrics = {
        name: [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
        for name, run in runs.items()
    }
    at.picture.write_bytes(draw_picture(metrics, result))


def _closing_lines(config: TourConfig, result: Result, seconds: float) -> Iterator[str]:
    at = TourPaths(config.out)
    yield from table_lines(result)
    yield ""
    sentence = verdict(result)
    yield from textwrap.wrap(f"{sentence[0].upper()}{sentence[1:]}.", 100)
    if config.is_quick:
        yield "With --quick the results mean little, since both trainings are short."
    yield ""
    yield f"page       {at.page}"
    yield f"picture    {at.picture} (losses: {at.contrastive}/loss.png, {at.distilled}/loss.png)"
    yield f"student    {at.distilled / 'model'}, for plain transformers"
    yield f"caches     {at.scenes_cache}, {at.held_out_cache}"
    report = ("report", str(at.distilled), "--cache", str(at.held_out_cache), "--split", "all")
    page = ("--html", str(at.out / "report.html"))
    yield f"more       siglip2-cache {shlex.join((*report, *page))}"
    size = sum(path.stat().st_size for path in at.out.rglob("*") if path.is_file())
    yield f"total      {at.out}, {format_bytes(size)}; to remove it: rm -r {shlex.quote(str(at.out))}"
    yield f"took       {format_seconds(seconds)}"
