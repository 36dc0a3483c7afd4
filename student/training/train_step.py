"""Making one step: selection, loss, gradient and optimizer, in smaller pieces where memory runs out."""

import gc

import torch

from ...errors import TrainError
from ..data.batch import Batch
from ..data.random_draws import step_seed
from ..distributed import Ranks
from ..losses.objective import Objective
from ..losses.pca_map import PcaMap
from .batch_labels import LabelMaker
from .components import make_selection
from .distiller import Distiller, Embedded
from .ema import WeightAverage
from .gradient_cache import GradientCache
from .learnability import LearnabilitySelection
from .out_of_memory import DoesNotFit, one_image_does_not_fit
from .progress import TrainProgress
from .resolve import Resolved
from .run_folder import RunFolder
from .schedule import Optimizer, Schedule
from .step_metrics import MadeStep


class StepMaker:
    """Makes the steps of a training, in all processes at once."""

    def __init__(
        self,
        resolved: Resolved,
        ranks: Ranks,
        run: RunFolder | None,
        progress: TrainProgress,
        *,
        distiller: Distiller,
        optimizer: Optimizer,
        average: WeightAverage | None,
        objectives: list[Objective],
        schedule: Schedule,
        pca: PcaMap | None,
    ) -> None:
        """Prepare for steps of these parameters, which have been restored.

        Args:
            resolved: settings, cache and checkpoint.
            ranks: this process among the others.
            run: folder of the run, where smaller micro-batches are recorded; None in processes other than
                rank 0.
            progress: where lines for people go.
            distiller: what is trained.
            optimizer: of its parameters.
            average: of its parameters; None: there is none.
            objectives: terms of each teacher.
            schedule: of learning rate and of the first steps.
            pca: map to the teacher's width; None without one.
        """
        self._resolved, self._ranks, self._run, self._progress = resolved, ranks, run, progress
        self._config, self._distiller, self._optimizer = resolved.config, distiller, optimizer
        self._average, self._schedule = average, schedule
        self._labels = LabelMaker(resolved, pca)
        self._selection = make_selection(resolved, ranks)
        self._gradients = GradientCache(
            distiller,
            objectives,
            ranks,
            micro_batch_size=self._config.micro_batch_size,
            map_ED=None if pca is None else torch.from_numpy(pca.map_ED),
            padded_size=self._padded_size() if self._config.compile else None,
        )

    def make(self, step: int, batch: Batch) -> MadeStep:
        """Make one step, without waiting for the device; in smaller pieces where memory runs out.

        Args:
            step: 1, 2, ...
            batch: of this process.

        Raises:
            TrainError: one image does not fit in memory, or no process has an image that can be used.
        """
        while True:
            try:
                return self._try(step, batch)
            except DoesNotFit as error:
                reason = str(error)
            self._shrink(step, reason)  # the error holds the memory of the pass

    def _try(self, step: int, batch: Batch) -> MadeStep:
        """Make one step; raise DoesNotFit before anything but gradients has changed."""
        # Dropout, if a student has any, is a function of seed, step and rank: resuming needs no state.
        torch.manual_seed(step_seed(self._config.seed, step, self._ranks.rank))
        is_fitting, embedded = step <= self._schedule.alone_steps, None
        if self._selection is not None and not is_fitting:
            batch, embedded = self._select(self._selection, batch)
        labels = self._labels.make(step, batch)
        if self._distiller.patch_dropout is not None:
            self._distiller.patch_dropout.is_on = self._schedule.has_patch_dropout(step)
        if is_fitting:
            loss = self._gradients.fit_map(batch, labels)
            norm = torch.zeros((), device=self._distiller.device)
        else:
            loss = self._gradients.compute(batch, labels, embedded)
            parameters = self._distiller.parameters()
            norm = torch.nn.utils.clip_grad_norm_(parameters, self._config.clip_norm)
        if loss.counts.num_images == 0:  # in all processes at once: the count is their sum
            raise self._no_image(step, batch)
        made = MadeStep(step, batch, loss, norm)
        if not is_fitting:
            self._optimizer.step(self._schedule, step, made.is_finite)
        if self._average is not None:
            if is_fitting:
                self._average.restart()
            else:
                self._average.update(step, made.is_finite)
        return made

    def _shrink(self, step: int, reason: str) -> None:
        """Halve the micro-batches after a step that did not fit, in all processes.

        Raises:
            TrainError: they have one image already.
        """
        old = self._gradients.micro_batch_size or max(self._padded_size())
        new, device = (old + 1) // 2, self._resolved.device
        if new == old:
            raise self._ranks.error_of_first(one_image_does_not_fit(device, reason))
        self._gradients.shrink(new)
        gc.collect()
        torch.cuda.empty_cache()
        self._progress.say(
            f"warning: a forward and backward pass of {old:,} images does not fit in the memory of {device} "
            f"({reason}); step {step:,} is made again with {new:,} at a time, and all after it"
        )
        change = {"micro_batch_size": (old, new)}
        run = self._run
        self._ranks.run_together(
            lambda: None if run is None else run.record_changes(step - 1, change)
        )

    def _select(
        self, selection: LearnabilitySelection, batch: Batch
    ) -> tuple[Batch, Embedded | None]:
        """Return the images of a step, drawn from more, and their rows if these are still valid."""
        embedded, is_repeatable = self._gradients.embed(batch)
        matching = self._resolved.train.matching_pairs(batch.positions_N, batch.text_rows_M)
        scale, bias = self._distiller.scale_and_bias
        chosen, rows = selection.choose(
            batch, embedded, matching, (scale.exp().item(), bias.item())
        )
        return chosen, rows if is_repeatable else None

    def _no_image(self, step: int, batch: Batch) -> TrainError:
        """Return the error of a step in which no process has an image that can be used."""
        skipped = [each for found in self._ranks.gather_objects(batch.skipped) for each in found]
        key, reason = skipped[0]
        return self._ranks.error_of_first(
            TrainError(
                f"no image of step {step:,} can be used (first: {key!r}, {reason}); if the corpus has "
                "moved, add --corpus-root OLD=NEW"
            )
        )

    def _padded_size(self) -> tuple[int, int]:
        """Return the images and texts of a full micro-batch of one process."""
        images = self._config.global_batch_size // self._ranks.world_size
        texts = images * self._config.captions_per_image
        most = self._config.micro_batch_size or texts
        return min(images, most), min(texts, most)
