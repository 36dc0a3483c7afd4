"""The engine with one worker, in the driver's own process: nothing is started, nothing is sent."""

import threading
from collections.abc import Callable

from ...store.cache import Cache
from .driver import stop_on_signals
from .messages import Advanced, FinishedUnit, WorkOrder
from .row_targets import RowTargets
from .totals import BuildTotals
from .work_queue import WorkQueue
from .worker import UnitWorker, torch_threads

_WORKER = 0


class InProcessEngine:
    """Makes units in this process."""

    def __init__(self, load: Callable[[WorkOrder], RowTargets]) -> None:
        """Set what returns the source of targets; a build that has just added a teacher has it loaded."""
        self._load = load

    def run(self, order: WorkOrder, work_queue: WorkQueue, totals: BuildTotals) -> None:
        """See Engine."""
        cache = Cache(order.cache, corpus_roots=order.corpus_roots)
        targets = self._load(order)
        with torch_threads(order.num_threads):  # a teacher that needs torch has loaded it
            totals.add_provenance(targets.provenance())

            def report(result: Advanced | FinishedUnit) -> None:
                if isinstance(result, FinishedUnit):
                    work_queue.finish(_WORKER, (result.modality, result.number))
                    totals.add_unit(_WORKER, result)
                else:
                    totals.add_rows(_WORKER, result)

            worker = UnitWorker(order, cache, targets, report)
            stop = threading.Event()
            try:
                with stop_on_signals(stop):
                    worker.run(lambda modality: work_queue.take(_WORKER, modality), stop)
            finally:
                totals.add_worker(worker.summarize())
