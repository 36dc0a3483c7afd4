"""Scans made for the one that plans: by shares that wait for it, and by processes of its own machine.

Whoever makes them leaves them in the cache's folder, where the planner finds those that are there in time and
makes the others itself. What is wrong with the corpus is the planner's to say.
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
from ..shares import Share
from .plan import PlanConfig, name_sources, open_if_planned
from .scan import Scanner

_PATIENCE_S = 5.0
"""How long the end waits for the piece at hand, so that its scan is not left behind in the cache."""

_MOST_PROCESSES = 8
"""Beyond that the planner, which reads every scan, is the slowest. Each takes some 200 MB."""

_PIECES_EACH = 16
"""Pieces that a process must have to do: it takes a second to start."""


def keep_scans(
    config: PlanConfig,
    files: Storage,
    index: int,
    count: int,
    *,
    only_local: bool = False,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Scan, of every ``count`` pieces of the corpus, the one at ``index``, and keep what it gives.

    Pieces that somebody has scanned, and those that no scan can be known by, are passed over.
    """
    scanner = Scanner(files, keeps=True)
    with contextlib.suppress(CacheError, OSError):
        for _, source in name_sources(config, open_if_planned(files, config.corpus_roots)):
            if only_local and isinstance(source.location, UPath):
                continue
            with contextlib.closing(scanner.keep_share(source, index, count)) as scans:
                for _ in scans:
                    if is_over():
                        return


@contextlib.contextmanager
def helping_to_plan(config: PlanConfig, files: Storage, share: Share) -> Generator[None]:
    """Scan this share's pieces in a thread, as long as the body runs."""
    stopping = threading.Event()

    def run() -> None:
        keep_scans(config, files, share.index, share.count, is_over=stopping.is_set)

    thread = threading.Thread(target=run, name="share-scans", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(_PATIENCE_S)


@contextlib.contextmanager
def scanning_in_processes(config: PlanConfig, files: Storage) -> Generator[list[BaseProcess]]:
    """Scan pieces on this machine in processes, one a spare core, as long as the body plans; there are
    none where the pieces are few. Gives the processes; each ends when its pieces are scanned."""
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
        return 0  # pieces in a store are scanned by threads, and listing them again costs requests
    most = min(num_cores() - 1, _MOST_PROCESSES)
    sources = name_sources(config, open_if_planned(files, config.corpus_roots)) if most else []
    pieces = (
        piece
        for _, source in sources
        if not isinstance(source.location, UPath)
        for piece in source.pieces()
        if piece.fingerprint is not None
    )
    return sum(1 for _ in itertools.islice(pieces, most * _PIECES_EACH)) // _PIECES_EACH


def _scan_in_process(config: PlanConfig, root: Location, index: int, count: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the planner's to handle
    threading.Thread(target=exit_with_parent, daemon=True).start()
    keep_scans(config, open_storage(root), index, count, only_local=True)
