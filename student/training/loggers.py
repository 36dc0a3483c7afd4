"""Where the metrics of a training go beside RUN/metrics.jsonl: TensorBoard, Weights & Biases, callbacks."""

import importlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import SettingError
from ...formatting import first_line
from ..config import TrainConfig
from ..config_file import as_plain
from .run_folder import RunFolder

Metrics = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Functions that rank 0 calls during a training."""

    on_step: Callable[[Metrics], None] | None = None
    """Called after every step with its line of metrics.jsonl."""

    on_eval: Callable[[Metrics], None] | None = None
    """Called after every evaluation with its numbers, ``step`` among them."""


class MetricsLogger(Protocol):
    """Takes the metrics of each step."""

    def add(self, metrics: Metrics) -> None:
        """Take one step's line of metrics.jsonl."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def check_loggers(config: TrainConfig) -> None:
    """Check that the packages of the loggers are installed that the settings ask for.

    Raises:
        SettingError: one is not.
    """
    wanted = (
        (config.tensorboard, "tensorboard", "torch.utils.tensorboard"),
        (config.wandb is not None, "wandb", "wandb"),
    )
    for is_wanted, package, module in wanted:
        try:
            if is_wanted:
                importlib.import_module(module)
        except ImportError:
            raise SettingError(
                f"--{package} needs the package {package}, which is not installed: pip install {package}"
            ) from None


def make_loggers(config: TrainConfig, run: RunFolder, steps_done: int) -> list[MetricsLogger]:
    """Return the loggers that the settings ask for.

    Raises:
        SettingError: Weights & Biases does not take the run, such as without a login.
    """
    loggers: list[MetricsLogger] = []
    if config.tensorboard:
        loggers.append(_TensorBoard(run, steps_done))
    if config.wandb is not None:
        loggers.append(_Wandb(config, run))
    return loggers


class _TensorBoard:
    """RUN/tensorboard."""

    def __init__(self, run: RunFolder, steps_done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(run.root / "tensorboard")
        self._writer: Any = SummaryWriter(folder, purge_step=steps_done + 1)

    def add(self, metrics: Metrics) -> None:
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases; resuming goes on with the same one."""

    def __init__(self, config: TrainConfig, run: RunFolder) -> None:
        wandb: Any = importlib.import_module("wandb")  # an extra, and not in the tests

        facts = run.read_facts()
        if "wandb_id" not in facts:
            facts["wandb_id"] = uuid.uuid4().hex
            run.write_facts(facts)
        try:
            self._run: Any = wandb.init(
                project=config.wandb,
                id=facts["wandb_id"],
                name=run.root.name,
                resume="allow",
                dir=run.root,
                config=as_plain(config),
                settings=wandb.Settings(silent=True),
            )
        except (wandb.Error, ValueError) as error:
            raise SettingError(
                f"--wandb {config.wandb!r} cannot be logged to ({first_line(error)}); use wandb login, or "
                "set WANDB_MODE=offline, or leave it out"
            ) from None

    def add(self, metrics: Metrics) -> None:
        self._run.log(_numbers(metrics), step=metrics["step"])

    def close(self) -> None:
        self._run.finish()


def _numbers(metrics: Metrics) -> dict[str, float]:
    """Return the metrics that are numbers, without the step."""
    return {
        name: value
        for name, value in metrics.items()
        if name != "step" and isinstance(value, int | float)
    }
