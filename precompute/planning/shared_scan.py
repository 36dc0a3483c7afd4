"""Scanning for the planner in parallel: in ranks that wait for the plan, and in processes on its machine.

Scans are kept in the cache's folder. The planner uses those that are there in time and makes the others
itself. Only the planner reports errors in the corpus.
"""

import contextlib
import itertools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator
from multiprocessing.process import BaseProcess

from upath import UPath

from ...cores import num_cores
from ...errors import CacheError
from ...images.decode_worker import exit_with_parent
from ...images.main_module import hide_main_module
from ...store.io.location import Location
from ...store.io.storage import Storage, open_storage
from ..ranks import ProcessRank
from .config import PlanConfig
from .plan import open_if_planned
from .scan import Scanner
from .source_names import name_sources

_JOIN_TIMEOUT_S = 5.0
"""Longest wait at the end for the current part, so that its scan is not left behind in the cache."""

_MOST_PROCESSES = 8
"""With more, the planner, which reads every scan, is the bottleneck. Each takes some 200 MB."""

_PARTS_EACH = 16
"""Least parts for one process: starting it takes a second."""


def scan_slice(
    config: PlanConfig,
    files: Storage,
    first: int,
    step: int,
    *,
    only_local: bool = False,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Scan the parts ``first``, ``first + step``, ... of the corpus, and keep the scans.

    Skips parts that are scanned already, and parts without a fingerprint, whose scans cannot be kept.
    """
    scanner = Scanner(files, keeps=True)
    with contextlib.suppress(CacheError, OSError):
        for _, source in name_sources(config, open_if_planned(files, config.corpus_roots)):
            if only_local and isinstance(source.location, UPath):
                continue
            with contextlib.closing(scanner.scan_slice(source, first, step)) as scans:
                for _ in scans:
                    if is_over():
                        return


@contextlib.contextmanager
def scan_in_thread(config: PlanConfig, files: Storage, rank: ProcessRank) -> Generator[None]:
    """Scan this rank's parts in a thread while the body runs."""
    stopping = threading.Event()

    def run() -> None:
        scan_slice(config, files, rank.rank, rank.world_size, is_over=stopping.is_set)

    thread = threading.Thread(target=run, name="scans", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(_JOIN_TIMEOUT_S)


@contextlib.contextmanager
def scan_in_processes(config: PlanConfig, files: Storage) -> Generator[list[BaseProcess]]:
    """Scan parts in processes on this machine, one a spare core, while the body plans.

    Yields the processes, none if there are few parts; each ends when its parts are scanned.
    """
    context = multiprocessing.get_context("spawn")
    num_processes = _num_processes(config, files)
    processes = [
        context.Process(
            target=_scan_in_process,
            args=(config, files.root, index, num_processes + 1),
            name=f"siglip2-cache-scan-{index}",
            daemon=True,
        )
        for index in range(1, num_processes + 1)
    ]
    try:
        with hide_main_module():
            for process in processes:
                process.start()
        yield list(processes)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _num_processes(config: PlanConfig, files: Storage) -> int:
    if all("://" in str(source) for source in config.sources):
        return 0  # parts in object stores are scanned by threads; listing them again costs requests
    most = min(num_cores() - 1, _MOST_PROCESSES)
    sources = name_sources(config, open_if_planned(files, config.corpus_roots)) if most else []
    parts = (
        part
        for _, source in sources
        if not isinstance(source.location, UPath)
        for part in source.parts()
        if part.fingerprint is not None
    )
    return sum(1 for _ in itertools.islice(parts, most * _PARTS_EACH)) // _PARTS_EACH


def _scan_in_process(config: PlanConfig, root: Location, index: int, count: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the planner handles Ctrl-C
    threading.Thread(target=exit_with_parent, daemon=True).start()
    scan_slice(config, open_storage(root), index, count, only_local=True)
