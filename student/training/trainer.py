"""Training a student, from settings to RUN/model: train() runs a Trainer, whose steps() is the loop."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import TrainError
from ...progress import Display
from ...siglip import graph_limit_reported
from ..config import TrainConfig
from ..data.batch import Batch
from ..data.catalog_index import ImageLookup
from ..data.loader import Loader
from ..distributed import Ranks, join_ranks, leave_ranks, lost_peers_reported
from ..launch import find_launch, raised_once
from ..losses.pca_map import PcaMap
from .checkpoints import SavedState
from .components import (
    fit_pca,
    make_distiller,
    make_loader,
    make_objectives,
    make_optimizer,
    make_sampler,
    schedule_of,
)
from .distiller import Distiller
from .ema import WeightAverage
from .evaluate_run import evaluate_student, lacks_evaluation, pca_lines
from .evaluations import Evaluations
from .export_run import export_run
from .initial_weights import begin_from
from .loggers import Callbacks, MetricsLogger, check_loggers, make_loggers
from .nonfinite_steps import NonfiniteSteps
from .other_tower import check_same_map
from .out_of_memory import out_of_memory_reported
from .progress import TrainProgress
from .resolve import Resolved, device_of, refuse_empty_bank, resolve
from .resume import begin_or_resume, on_host, restore_checkpoint
from .run_folder import RunFolder
from .step_metrics import MadeStep, StepTimer, reads_late, step_metrics
from .stop_signals import StopFlag, save_signal_ignored, stop_signals_noted
from .train_step import StepMaker

_MOST_NAMED = 5
"""Images that are named in a warning each as they are skipped; the others are counted."""


class TrainInterrupted(TrainError):  # noqa: N818 - nothing went wrong
    """The training was stopped by a signal, after a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """Counts and speed of one call of train()."""

    steps: int
    """Steps of the whole run."""

    first_step: int
    """First step of this process; steps + 1 where all had been made before."""

    seconds: float
    images_per_s: float
    wait_share: float
    """Share of the steps' time spent waiting for pixels."""

    is_first: bool
    """Whether this process is rank 0, which writes the files."""

    num_skipped: int
    """Images skipped: unreadable, or their bytes differ from those the teacher saw."""

    num_nonfinite: int
    """Steps skipped because the loss or the gradient was not finite."""


@save_signal_ignored()
def train(
    config: TrainConfig,
    *,
    progress: TrainProgress | None = None,
    callbacks: Callbacks | None = None,
    trainer_class: "type[Trainer] | None" = None,
) -> TrainSummary:
    """Train, evaluate and export a student; called again with the same settings, resume or do nothing.

    Under torchrun or accelerate every process calls it; rank 0 writes.

    Args:
        config: the settings.
        progress: where lines for people go; None: plain lines on stderr.
        callbacks: functions that rank 0 calls after steps and evaluations.
        trainer_class: for experiments, a subclass of Trainer.

    Raises:
        CacheError: a problem that the user can fix, in one line; the last checkpoint stays.
        TrainInterrupted: SIGINT or SIGTERM came; a checkpoint was written.
    """
    launch = find_launch()
    with raised_once(launch):
        device = device_of(config, launch)
    ranks = join_ranks(device, launch)
    progress = (progress or TrainProgress()) if ranks.is_first else TrainProgress(Display())
    try:
        if device.startswith("cuda:"):  # plain cuda is the current one already
            torch.cuda.set_device(device)
        reported = out_of_memory_reported(config, device, ranks.world_size)
        with ExitStack() as stack, lost_peers_reported(ranks), reported:

            def start() -> Trainer:
                resolved, run = resolve(config, launch, device), None
                if ranks.is_first:
                    run = RunFolder(config.out.absolute())
                    stack.callback(run.close)
                return (trainer_class or Trainer)(resolved, ranks, run, progress, callbacks)

            summary = ranks.run_together(start).run()
    except TrainInterrupted:  # in all processes at once
        leave_ranks()
        raise
    finally:
        progress.stop()
    # After an error of one process the others may be in the middle of a message; leaving them in order
    # would wait for its end. So the process just exits, and the launcher ends the others.
    leave_ranks()
    return summary


class Trainer:
    """One process's part of a training. Experiments override make_distiller and batches."""

    def __init__(
        self,
        resolved: Resolved,
        ranks: Ranks,
        run: RunFolder | None,
        progress: TrainProgress,
        callbacks: Callbacks | None = None,
    ) -> None:
        """Begin or resume the run, and make everything that a step needs.

        Args:
            resolved: settings, cache and checkpoint.
            ranks: this process among the others.
            run: folder of the run; None in processes other than rank 0.
            progress: where lines for people go.
            callbacks: functions that rank 0 calls.
        """
        self._resolved, self._ranks, self._run, self._progress = resolved, ranks, run, progress
        self._callbacks = callbacks or Callbacks()
        self._config = resolved.config
        self._facts = resolved.fingerprint() if run is not None else {}
        self._first_steps = resolved.steps
        if run is not None:
            check_loggers(self._config)
            start = begin_or_resume(run, resolved, self._facts)
            self._first_steps = start.first_steps
            for line in start.lines:
                progress.say(line)
        refuse_empty_bank(resolved)
        self._images = ImageLookup(resolved.cache, resolved.train, resolved.kept)
        self._sampler = make_sampler(resolved, self._images, ranks)
        self._pca: PcaMap | None = None
        self._distiller = self.make_distiller(resolved)
        self._optimizer = make_optimizer(self._distiller, resolved)
        self._average = None
        if self._config.ema is not None:  # in every process: each evaluates a share
            self._average = WeightAverage(
                self._distiller,
                self._config.ema,
                global_batch_size=self._config.global_batch_size,
            )
        self._evaluations: Evaluations | None = None
        self._objectives = make_objectives(resolved)
        self._loggers: list[MetricsLogger] = []
        self._timer = StepTimer()
        self._num_skipped = 0
        self._nonfinite = NonfiniteSteps(
            self._images,
            ranks,
            progress,
            most=self._config.max_nonfinite_steps,
            last_step=resolved.steps,
        )

    def make_distiller(self, resolved: Resolved) -> Distiller:
        """Return the module that is trained, on its device."""
        return make_distiller(resolved)

    def batches(self, loader: Loader, done: int) -> Iterator[Batch]:
        """Yield the batches of the steps after ``done``."""
        return loader.batches(done, self._resolved.steps)

    def run(self) -> TrainSummary:
        """Make the remaining steps, evaluate and export."""
        resolved = self._resolved
        if resolved.projection == "pca":
            self._pca = fit_pca(resolved, self._ranks)
            self._on_first(lambda run: check_same_map(self._config, resolved.teacher, self._pca))
        if self._config.eval_every is not None:
            self._evaluations = self._ranks.run_together(
                lambda: Evaluations(resolved, self._run, self._pca, self._progress, self._ranks)
            )
        done = self._restore()
        first_steps = self._ranks.broadcast(self._first_steps)
        self._schedule = self._ranks.run_together(lambda: schedule_of(resolved, first_steps))
        self._step_maker = StepMaker(
            resolved,
            self._ranks,
            self._run,
            self._progress,
            distiller=self._distiller,
            optimizer=self._optimizer,
            average=self._average,
            objectives=self._objectives,
            schedule=self._schedule,
            pca=self._pca,
        )
        if self._pca is not None:
            for line in pca_lines(resolved, self._pca):
                self._progress.say(line)

        if self._has_start and self._lacks_evaluation_before():
            start = self._ranks.run_together(lambda: self._start(done))
            evaluate_student(resolved, start, self._run, "before", self._pca, self._ranks)
        for note in resolved.notes:
            self._progress.say(f"note: {note}")
        self._progress.say(self._first_line(done))
        started = time.monotonic()
        try:
            if done < resolved.steps:
                self._make_steps(done)
        finally:
            for logger in self._loggers:
                logger.close()
        seconds = time.monotonic() - started
        export_run(resolved, self._distiller, self._run, self._pca, self._progress, self._ranks)
        num_images = (resolved.steps - done) * self._config.global_batch_size
        return TrainSummary(
            steps=resolved.steps,
            first_step=done + 1,
            seconds=seconds,
            images_per_s=num_images / self._timer.step_s if self._timer.step_s else 0.0,
            wait_share=self._timer.wait_s / self._timer.step_s if self._timer.step_s else 0.0,
            is_first=self._ranks.is_first,
            num_skipped=self._num_skipped,
            num_nonfinite=self._nonfinite.num,
        )

    @property
    def _has_start(self) -> bool:
        """Whether the initial student can be evaluated: texts alone are compared through a fitted map."""
        return self._config.towers != "text" or self._distiller.projection is None

    def _lacks_evaluation_before(self) -> bool:
        run = self._run
        return self._ranks.run_on_first(
            lambda: run is not None and lacks_evaluation(self._resolved, run, "before")
        )

    def _start(self, done: int) -> Distiller:
        """Return the student as it was before the first step."""
        if not done:
            return self._distiller
        start = self.make_distiller(self._resolved)
        begin_from(start, self._config.init_from)
        return start

    def _make_steps(self, done: int) -> None:
        """Make all steps after those done: the training loop."""
        steps, save_every = self._resolved.steps, self._resolved.save_every
        self._progress.start(done, steps)
        self._distiller.train()
        loader = make_loader(self._resolved, self._sampler, self._images)
        unread: list[MadeStep] = []
        with loader, stop_signals_noted() as stop, graph_limit_reported(self._progress.say):
            for batch in self.batches(loader, done):
                step = batch.step + 1
                with self._timer.measured(batch):
                    made = self._step_maker.make(step, batch)
                    is_stopping, is_save_wanted, made.skipped = self._shared(stop, batch)
                    is_due = is_stopping or is_save_wanted or step % save_every == 0
                    is_due = is_due or step in (steps, self._schedule.decay_start)
                    is_evaluated = self._is_evaluated(step)
                    # What is due needs this step's numbers; else CUDA works on it while it gets the next.
                    is_late = reads_late(self._distiller.device) and not (is_due or is_evaluated)
                    to_read, unread = (unread, [made]) if is_late else ([*unread, made], [])
                    for each in to_read:
                        self._read(each)
                made.metrics |= self._timer.last(self._config.global_batch_size)
                if is_evaluated:
                    made.metrics |= self._evaluate(step)
                for each in to_read:
                    self._report(each)
                # Not amid steps that are not finite: it would take the place of a better checkpoint.
                is_sound = self._nonfinite.in_row == 0
                if step == steps or (is_sound and is_due):
                    self._save(step)
                    stop.is_save_wanted = False
                if is_stopping and step < steps:
                    kept = "a checkpoint is saved" if is_sound else "the last checkpoint is kept"
                    raise TrainInterrupted(
                        f"stopped after step {step:,} of {steps:,}; {kept}, run the same command "
                        "again to resume"
                    )

    def _read(self, made: MadeStep) -> None:
        """Read the numbers of a step, after the device has made it; warn of one that was skipped."""
        loss, norm = made.read()
        made.metrics |= step_metrics(made, loss, norm, self._schedule, self._config)
        if loss.is_finite and np.isfinite(norm):
            self._nonfinite.in_row = 0
            return
        keys = self._nonfinite.skip(made.step, made.positions_N, loss, norm)
        made.metrics["nonfinite_keys"] = keys

    def _is_evaluated(self, step: int) -> bool:
        every = self._config.eval_every
        return every is not None and (step % every == 0 or step == self._resolved.steps)

    def _evaluate(self, step: int) -> dict[str, Any]:
        """Evaluate after a step; return the numbers in rank 0."""
        assert self._evaluations is not None
        found = self._evaluations.evaluate(step, self._distiller, self._average)

        def tell(_: RunFolder) -> None:
            if self._callbacks.on_eval is not None:
                self._callbacks.on_eval({"step": step, **found})

        self._on_first(tell)
        return found

    def _shared(self, stop: StopFlag, batch: Batch) -> tuple[bool, bool, list[tuple[str, str]]]:
        """Return whether any process is to stop or to save, and the images that all of them skipped."""
        own = [int(stop.is_set), int(stop.is_save_wanted), len(batch.skipped)]
        stopped, saving, skipped = zip(*self._ranks.gather_numbers(own), strict=True)
        lists = self._ranks.gather_objects(batch.skipped) if any(skipped) else []
        return any(stopped), any(saving), [each for skipped in lists for each in skipped]

    def _report(self, made: MadeStep) -> None:
        """Write the metrics of a step; warn of the first skipped images by key, count the others."""
        metrics = made.metrics | {"skipped": len(made.skipped)}
        for key, reason in made.skipped:
            self._num_skipped += 1
            if self._num_skipped <= _MOST_NAMED:
                self._progress.say(f"warning: image {key!r} is skipped: {reason}")
        if self._run is not None:
            self._run.add_metrics(metrics)
            for logger in self._loggers:
                logger.add(metrics)
            if self._callbacks.on_step is not None:
                self._callbacks.on_step(metrics)
        terms = [each.metric(term) for each in self._objectives for term in each.terms]
        self._progress.step(metrics | {"terms": terms})

    def _restore(self) -> int:
        """Load the newest checkpoint, if there is one; return its step."""
        saved = self._ranks.run_together(
            lambda: None if self._run is None else self._run.checkpoints.load_newest()
        )
        done = self._ranks.broadcast(0 if saved is None else saved.step)
        if done:
            restore_checkpoint(done, saved, self._distiller, self._optimizer, self._ranks)
        else:
            begin_from(self._distiller, self._config.init_from)
        if self._average is not None:
            if self._ranks.broadcast(saved is not None and saved.ema is not None):
                own = saved and saved.ema
                self._average.load(self._ranks.broadcast_tensors(own, self._distiller.device))
            else:
                self._average.restart()
        self._best = None if saved is None else saved.best
        if self._evaluations is not None:
            self._evaluations.best = self._best
        if self._run is not None:
            self._run.start_metrics(done)
            self._loggers = make_loggers(self._config, self._run, done)
        return done

    def _save(self, step: int) -> None:
        def save(run: RunFolder) -> None:
            average, model = self._average, self._distiller.state_dict()
            saved = SavedState(
                step,
                self._facts,
                model=on_host(model),
                optimizer=on_host(self._optimizer.tensors()),
                ema=None if average is None else on_host(model | average.tensors()),
                best=self._best if self._evaluations is None else self._evaluations.best,
            )
            also = [self._schedule.decay_start] if self._schedule.decay_start else []
            run.save_checkpoint(saved, keep=self._config.keep_checkpoints, also=also)

        self._on_first(save)

    def _on_first(self, act: Callable[[RunFolder], None]) -> None:
        """Let rank 0 do something while the others wait."""
        self._ranks.run_together(lambda: None if self._run is None else act(self._run))

    def _first_line(self, done: int) -> str:
        resolved, num_others = self._resolved, self._ranks.world_size - 1
        return (
            f"training {resolved.checkpoint.name} on {resolved.train.num_images:,} images "
            f"({resolved.train.num_captioned:,} with captions) for {resolved.steps:,} steps of "
            f"{self._config.global_batch_size:,}, "
            f"{'from kept pixels, ' if resolved.kept is not None else ''}on {resolved.device}"
            f"{f' and {num_others} more' if num_others else ''}"
            f"{f', resuming after step {done:,}' if done else ''}"
        )
