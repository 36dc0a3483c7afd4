"""A training in two processes as torchrun starts them, but forked: they begin 15 s of CPU earlier."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

from torch.distributed import TCPStore

from kit.patience import PATIENCE_S
from kit.processes import Process


def train_in_two(*arguments: object) -> list[subprocess.CompletedProcess[str]]:
    """Run ``siglip2-cache train`` in two processes, and return both in order of rank."""
    with two_trainings(*arguments) as processes:
        said = [process.communicate(timeout=PATIENCE_S) for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(processes, said, strict=True)
    ]


@contextmanager
def two_trainings(*arguments: object) -> Generator[list[Process]]:
    """Start ``siglip2-cache train`` in two processes, in order of rank; kill what is left at the end."""
    # Its port is taken from here on, so that nobody else takes it before the processes have begun.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    both = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # as torchrun says it: the store is there
    }
    command = [sys.executable, "-m", "siglip2_cache", "train", *arguments]
    pipe = subprocess.PIPE
    processes = [
        Process(
            command,
            stdout=pipe,
            stderr=pipe,
            env={**os.environ, **both, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
