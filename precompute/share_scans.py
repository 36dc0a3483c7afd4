"""What a share does while it waits for the plan: it scans pieces of the corpus for the one that plans."""

import contextlib
import threading
from collections.abc import Generator

from upath import UPath

from ..errors import CacheError
from ..store.storage import Files
from .plan import PlanConfig, name_sources, open_if_planned
from .scan import Scanner
from .shares import Share

_PATIENCE_S = 5.0
"""How long the end waits for the piece at hand, so that its scan is not left behind in the cache."""


@contextlib.contextmanager
def helping_to_plan(config: PlanConfig, files: Files, share: Share) -> Generator[None]:
    """Scan this share's pieces of what lies in object stores, in a thread, as long as the body runs.

    The planner finds the scans in the cache's folder, and takes those that are there in time. What is
    wrong with the corpus is the planner's to say.
    """
    scanner = Scanner(files, keeps=True)
    stopping = threading.Event()

    def run() -> None:
        with contextlib.suppress(CacheError, OSError):
            for _, source in name_sources(config, open_if_planned(files, config.corpus_roots)):
                if not isinstance(source.location, UPath):
                    continue
                with contextlib.closing(
                    scanner.keep_share(source, share.index, share.count)
                ) as scans:
                    for _ in scans:
                        if stopping.is_set():
                            return

    thread = threading.Thread(target=run, name="share-scans", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(_PATIENCE_S)
