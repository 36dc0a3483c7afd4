"""The engine with one worker, in the driver's own process: nothing is started, nothing is sent."""

import threading
from collections.abc import Callable

from ...store.cache import Cache
from ...store.format.layout import Modality
from ..teacher.teacher import Teacher
from .driver import stop_on_signals
from .messages import FinishedUnit, WorkOrder
from .totals import BuildTotals
from .work_queue import WorkQueue
from .worker import UnitWorker, torch_threads

_WORKER = 0


class InProcessEngine:
    """Makes units in this process."""

    def __init__(self, load: Callable[[], Teacher]) -> None:
        """Set what returns the teacher; a build that has just added it has it loaded."""
        self._load = load

    def run(self, order: WorkOrder, work_queue: WorkQueue, totals: BuildTotals) -> None:
        """See Engine."""
        cache = Cache(order.cache, corpus_roots=order.corpus_roots)
        with torch_threads(order.num_threads):
            teacher = self._load()
            totals.add_provenance(teacher.provenance())
            worker = UnitWorker(order, cache, teacher, _Report(work_queue, totals))
            stop = threading.Event()
            try:
                with stop_on_signals(stop):
                    worker.run(lambda modality: work_queue.take(_WORKER, modality), stop)
            finally:
                totals.add_worker(worker.summarize())


class _Report:
    """Passes results on without messages."""

    def __init__(self, work_queue: WorkQueue, totals: BuildTotals) -> None:
        self._work_queue, self._totals = work_queue, totals

    def add_rows(self, modality: Modality, num_rows: int, num_rejected: int) -> None:
        self._totals.add_rows(_WORKER, modality, num_rows, num_rejected)

    def add_unit(self, unit: FinishedUnit) -> None:
        self._work_queue.finish(_WORKER, (unit.modality, unit.number))
        self._totals.add_unit(_WORKER, unit)
