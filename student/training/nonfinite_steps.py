"""Steps whose loss or gradient is not finite: skipped and counted, an error after too many in a row."""

import numpy as np
from numpy.typing import NDArray

from ...errors import TrainError
from ..data.catalog_index import ImageLookup
from ..distributed import Ranks
from .batch_loss import StepLoss
from .progress import TrainProgress

_MOST_KEYS = 8
"""Keys of a batch that a message names; metrics.jsonl has all."""


class NonfiniteSteps:
    """Counts the skipped steps of one training."""

    def __init__(
        self,
        images: ImageLookup,
        ranks: Ranks,
        progress: TrainProgress,
        *,
        most: int,
        last_step: int,
    ) -> None:
        """Start at 0.

        Args:
            images: has the keys of the images.
            ranks: this process among the others.
            progress: shows the warnings.
            most: steps in a row after which the training ends.
            last_step: last step of the run, which must not be one of several in a row.
        """
        self._images, self._ranks, self._progress = images, ranks, progress
        self._most, self._last_step = most, last_step
        self.num = self.in_row = 0

    def skip(
        self, step: int, positions_N: NDArray[np.int64], loss: StepLoss, norm: float
    ) -> list[str]:
        """Count and warn of a step; return the keys of its batch.

        Every process meets the same loss and takes part in gathering the keys.

        Raises:
            TrainError: the step is one of too many in a row.
        """
        self.num += 1
        self.in_row += 1
        terms = [f"{term} {value}" for term, value in loss.values.items() if not np.isfinite(value)]
        what = f"the loss is not finite ({', '.join(terms)})"
        if not terms:
            what = f"the gradient is not finite (norm {norm})"
        positions = np.unique(np.concatenate(self._ranks.gather_objects(positions_N)))
        keys = self._images.keys(positions.tolist())
        more = f" and {len(keys) - _MOST_KEYS:,} more" if len(keys) > _MOST_KEYS else ""
        named = f"{', '.join(keys[:_MOST_KEYS])}{more}"
        if self.in_row >= self._most or (self.in_row > 1 and step == self._last_step):
            error = TrainError(
                f"step {step:,}: {what}, as in {self.in_row:,} steps in a row; the batch: {named}; "
                "resume from the last checkpoint with a smaller --lr or --dtype float32, or remove that "
                "checkpoint to resume from the one before it"
            )
            raise self._ranks.error_of_first(error)
        self._progress.say(f"warning: step {step:,} is skipped: {what}; the batch: {named}")
        return keys
