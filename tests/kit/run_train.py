"""A training in processes of their own, which kill themselves where they are told to.

python run_train.py SETTINGS.json [KILL ...]: SETTINGS are those of TrainConfig; each KILL is the number of
the operation (a step, an fsync, a rename, a removal) at which a process kills itself by SIGKILL, or with t
before it, sends itself SIGTERM. Then processes are started until one ends by itself; what each came to
is printed, with the number of its operations.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401 - before the processes part
import torch
import transformers.models.siglip.modeling_siglip  # noqa: F401

from siglip2_cache.progress import Display
from siglip2_cache.student.config_file import make_config
from siglip2_cache.student.training.progress import TrainProgress
from siglip2_cache.student.training.trainer import TrainInterrupted, train

_MOST_PROCESSES = 20


class Dying(TrainProgress):
    """Counts steps and file operations, and ends the process at one of them."""

    def __init__(self, signal_at: tuple[int, int]) -> None:
        super().__init__(Display())
        self.num_ops = 0
        self._signal, self._at = signal_at
        for module, name in ((os, "fsync"), (os, "rename"), (shutil, "rmtree")):
            setattr(module, name, self._counted(getattr(module, name)))

    def step(self, metrics: Any) -> None:
        self._count()

    def _counted(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._count()
            return act(*arguments, **named)

        return counted

    def _count(self) -> None:
        self.num_ops += 1
        if self.num_ops == self._at:
            os.kill(os.getpid(), self._signal)


def run_once(settings: dict[str, Any], signal_at: tuple[int, int]) -> int:
    """Return what a process that trains came to: its exit status, or less than 0: the signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        signal.alarm(120)  # one that hangs dies by itself
        torch.set_num_threads(1)
        progress = Dying(signal_at)
        try:
            train(make_config(None, settings), progress=progress)
            status = 0
        except TrainInterrupted as interrupted:
            print(interrupted)
            status = 130
        print(f"{progress.num_ops} operations", flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    settings |= {name: Path(settings[name]) for name in ("cache", "out")}
    kills = [
        (signal.SIGTERM, int(kill[1:])) if kill[0] == "t" else (signal.SIGKILL, int(kill))
        for kill in sys.argv[2:]
    ]
    for number in range(_MOST_PROCESSES):
        status = run_once(settings, kills[number] if number < len(kills) else (0, -1))
        print(f"status {status}", flush=True)
        if status in (0, 1):
            sys.exit(status)
    sys.exit(1)


if __name__ == "__main__":
    main()
