"""An exponential moving average of the weights.

Its decay is given for 256 images, so that another batch size averages over as many images. It begins low and
rises to the given one, so that a short run does not keep its first weights:

    decay of step s of B images = min(decay, (1 + n) / (10 + n)) ** (B / 256),  n = s B / 256

Source: Polyak and Juditsky 1992; the rise as in tf.train.ExponentialMovingAverage.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_IMAGES = 256
"""Images that the decay is given for."""


class WeightAverage:
    """The moving average of a module's parameters, on their device and in their dtype."""

    def __init__(self, module: nn.Module, decay: float, *, global_batch_size: int) -> None:
        """Begin with the module's present parameters.

        Args:
            module: what is trained.
            decay: for each 256 images, above 0 and below 1.
            global_batch_size: images of a step.
        """
        self._parameters = dict(module.named_parameters())
        self._decay, self._per_step = decay, global_batch_size / _IMAGES
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}

    def decay(self, step: int) -> float:
        """Return the decay of step 1, 2, ..."""
        n = step * self._per_step
        return min(self._decay, (1 + n) / (10 + n)) ** self._per_step

    @torch.no_grad()
    def update(self, step: int, is_made: Tensor) -> None:
        """Take the parameters after a step into the average.

        Args:
            step: 1, 2, ...
            is_made: scalar bool on the device: a step that was skipped changes nothing.
        """
        dtype = next(iter(self._averages.values())).dtype
        weight = is_made.to(dtype) * (1 - self.decay(step))
        for name, parameter in self._parameters.items():
            average = self._averages[name]
            average.lerp_(parameter, weight.to(average.dtype))

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again with the module's present parameters."""
        for name, parameter in self._parameters.items():
            self._averages[name].copy_(parameter)

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by the names of their parameters."""
        return dict(self._averages)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what tensors() returned."""
        for name, average in self._averages.items():
            average.copy_(tensors[name])

    @contextmanager
    def swapped_in(self) -> Generator[None]:
        """Let the module have the averages as its parameters within a ``with`` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            self._averages[name], parameter.data = parameter.data, self._averages[name]
