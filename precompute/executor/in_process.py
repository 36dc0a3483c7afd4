"""The engine of one worker, in the process of the driver: nothing is started, nothing is sent."""

import contextlib
import threading
from collections.abc import Callable, Generator

from ...store.cache import Cache
from ...store.format.layout import Modality
from ..teacher.teacher import Teacher
from .driver import Account, Ended, stopping_on_signals
from .work_queue import Ledger
from .worker import FinishedUnit, UnitWorker, WorkOrder

_ONLY = 0


class HereEngine:
    """Makes units in this process."""

    def __init__(self, load: Callable[[], Teacher]) -> None:
        """Remember where the teacher comes from; a build that enrolled it has it loaded."""
        self._load = load

    def run(self, order: WorkOrder, ledger: Ledger, account: Account) -> None:
        """See Engine."""
        cache = Cache(order.cache, corpus_roots=order.corpus_roots)
        with threads_of_torch(order.num_threads):
            teacher = self._load()
            account.ready(teacher.provenance())
            worker = UnitWorker(order, cache, teacher, _Report(ledger, account))
            stop = threading.Event()
            try:
                with stopping_on_signals(stop):
                    worker.run(lambda modality: ledger.take(_ONLY, modality), stop)
            finally:
                account.ended(worker_end(worker))


class _Report:
    """Writes into the books directly."""

    def __init__(self, ledger: Ledger, account: Account) -> None:
        self._ledger, self._account = ledger, account

    def advanced(self, modality: Modality, num_rows: int, num_rejected: int) -> None:
        self._account.advanced(_ONLY, modality, num_rows, num_rejected)

    def finished(self, unit: FinishedUnit) -> None:
        self._ledger.finished(_ONLY, (unit.modality, unit.number))
        self._account.finished(_ONLY, unit)


def worker_end(worker: UnitWorker) -> Ended:
    """Return what a worker says of itself as it ends."""
    embedder = worker.embedder
    return Ended(worker.times, worker.num_decoders, embedder.image_batch, embedder.text_batch)


@contextlib.contextmanager
def threads_of_torch(num_threads: int | None) -> Generator[None]:
    """Let torch compute in so many CPU threads, and as before afterwards; None: as it is set."""
    if num_threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
