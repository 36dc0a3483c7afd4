"""Training a student: from settings to RUN/model, and on from where it was stopped."""

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from ...errors import SettingError, TrainError
from ...formatting import first_line
from ...progress import Display
from ...siglip import checkpoint_activations, load_trainable, logit_scale_and_bias, vision_tower
from ..config import TrainConfig
from ..config_file import as_plain, refuse_changes, to_yaml
from ..data.batch import Batch
from ..data.catalog_index import ImageLookup
from ..data.loader import Loader, LoaderConfig
from ..data.sampler import Sampler
from ..distributed import Ranks, join_ranks, leave_ranks, lost_peers_said
from ..launch import find_launch, said_once
from ..losses.objective import Columns, Objective
from ..losses.pca_map import PcaMap, fit_pca_map
from ..losses.text_bank import Bank
from .distiller import Distiller
from .progress import TrainProgress
from .resolve import Resolved, device_of, resolve
from .run_folder import RunFolder, SavedState
from .schedule import Optimizer, Schedule, make_schedule
from .step import Gradients, Knowledge, StepLoss

_MOST_NAMED = 5
"""Images that are named one by one as they are left out; the others are counted."""


class TrainInterrupted(TrainError):  # noqa: N818 - nothing went wrong
    """The training was stopped by a signal after a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """What a training came to."""

    steps: int
    """All of the run."""

    first_step: int
    """The first that this process made; steps + 1 where all had been made before."""

    seconds: float
    images_per_s: float
    wait_share: float
    """Of the time of the steps, spent waiting for pixels."""

    is_first: bool
    """Whether this is the process that wrote the files."""

    num_skipped: int
    """Images left out as they were drawn: unreadable, or other bytes than the teacher saw."""


def train(
    config: TrainConfig,
    *,
    progress: TrainProgress | None = None,
    training: "type[Training] | None" = None,
) -> TrainSummary:
    """Train, evaluate and export; with the same settings again, go on or do nothing.

    Under torchrun or accelerate every process calls it; the first writes.

    Args:
        config: the settings.
        progress: what tells a person; None: plain lines on stderr.
        training: for experiments, a kind of Training that does a part of it otherwise.

    Raises:
        CacheError: what the user can mend, in one line; the last checkpoint stays.
        TrainInterrupted: SIGINT or SIGTERM came; a checkpoint was written.
    """
    launch = find_launch()
    with said_once(launch):
        device = device_of(config, launch)
    ranks = join_ranks(device, launch)
    progress = (progress or TrainProgress()) if ranks.is_first else TrainProgress(Display())
    try:
        if device.startswith("cuda:"):  # plain cuda is the current one already
            torch.cuda.set_device(device)
        with ExitStack() as stack, lost_peers_said(ranks):

            def begin() -> Training:
                resolved, run = resolve(config, launch, device), None
                if ranks.is_first:
                    run = RunFolder(config.out.absolute())
                    stack.callback(run.close)
                return (training or Training)(resolved, ranks, run, progress)

            summary = ranks.together(begin).run()
    except TrainInterrupted:  # in all processes at once
        leave_ranks()
        raise
    finally:
        progress.stop()
    # After an error of one process the others may be in the middle of a message: to part from them would
    # wait for that, so the process just ends, and who started it ends the others.
    leave_ranks()
    return summary


class Training:
    """One process's part of a training. Experiments override make_distiller and batches."""

    def __init__(
        self, resolved: Resolved, ranks: Ranks, run: RunFolder | None, progress: TrainProgress
    ) -> None:
        self._resolved, self._ranks, self._run, self._progress = resolved, ranks, run, progress
        self._config = resolved.config
        self._facts = resolved.fingerprint() if run is not None else {}
        if run is not None:
            for line in _take_up(run, resolved, self._facts):
                progress.say(line)
        self._images = ImageLookup(resolved.cache, resolved.train)
        self._sampler = Sampler(
            resolved.train,
            global_batch_size=self._config.global_batch_size,
            views_per_step=self._config.views_per_step,
            num_views=resolved.cache.num_views,
            seed=self._config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            groups=self._images.row_groups,
        )
        self._pca = fit_map(resolved) if resolved.projection == "pca" else None
        if self._pca is not None:
            self._say_pca(self._pca)
        self._distiller = self.make_distiller(resolved)
        self._schedule = make_schedule(
            resolved.steps,
            self._config.warmup_steps,
            steps_to_fit=_steps_to_fit(self._distiller, resolved),
        )
        assert self._config.lr is not None and self._config.weight_decay is not None
        self._optimizer = Optimizer(
            self._distiller,
            lr=self._config.lr,
            projection_lr=self._config.projection_lr,
            weight_decay=self._config.weight_decay,
        )
        self._gradients = Gradients(
            self._distiller,
            _objective(resolved),
            ranks,
            micro_batch_size=self._config.micro_batch_size,
            map_ED=None if self._pca is None else torch.from_numpy(self._pca.map_ED),
        )
        self._bank = _make_bank(resolved) if resolved.has_bank else None
        self._num_skipped = 0

    def make_distiller(self, resolved: Resolved) -> Distiller:
        """Return what is trained, on its device."""
        return make_distiller(resolved)

    def batches(self, loader: Loader, done: int) -> Iterator[Batch]:
        """Yield the batches of the steps to come."""
        return loader.batches(done, self._resolved.steps)

    def run(self) -> TrainSummary:
        """Make the steps that are left, evaluate and export."""
        from .finish import evaluate_student, finish

        done = self._resume()
        if done == 0:
            self._on_first(
                lambda run: evaluate_student(
                    self._resolved, self._distiller, run, "before", self._pca
                )
            )
        self._progress.say(self._first_line(done))
        started = time.monotonic()
        timing = self._steps(done)
        seconds = time.monotonic() - started
        self._on_first(
            lambda run: finish(self._resolved, self._distiller, run, self._pca, self._progress)
        )
        num_images = (self._resolved.steps - done) * self._config.global_batch_size
        return TrainSummary(
            steps=self._resolved.steps,
            first_step=done + 1,
            seconds=seconds,
            images_per_s=num_images / timing.step_s if timing.step_s else 0.0,
            wait_share=timing.wait_s / timing.step_s if timing.step_s else 0.0,
            is_first=self._ranks.is_first,
            num_skipped=self._num_skipped,
        )

    def _on_first(self, act: Callable[[RunFolder], None]) -> None:
        """Let the first process do something while the others wait."""
        self._ranks.together(lambda: None if self._run is None else act(self._run))

    def _resume(self) -> int:
        """Take up the newest checkpoint, if there is one; return the steps done."""
        saved = self._ranks.together(lambda: None if self._run is None else self._run.load())
        done = self._ranks.from_first(0 if saved is None else saved.step)
        if done:
            device = self._distiller.device
            model = self._ranks.tensors_from_first(saved and saved.model, device)
            optimizer = self._ranks.tensors_from_first(saved and saved.optimizer, device)
            try:
                self._distiller.load_state_dict(model)
            except RuntimeError as error:  # torch names what does not fit
                raise TrainError(
                    f"the checkpoint of step {done:,} is of another version of this program "
                    f"({first_line(error)}); begin another run with another --out"
                ) from None
            self._optimizer.load(optimizer)
        if self._run is not None:
            self._run.start_metrics(done)
            if self._config.tensorboard:
                self._run.start_tensorboard(done)
        return done

    def _steps(self, done: int) -> "_Timing":
        """Make all steps after those done."""
        resolved, timing = self._resolved, _Timing()
        if done == resolved.steps:
            return timing
        self._progress.start(done, resolved.steps)
        self._distiller.train()
        with self._make_loader() as loader, _signals() as stop:
            for batch in self.batches(loader, done):
                step = batch.step + 1
                started = time.monotonic()
                metrics = self._step(step, batch)
                timing.add(time.monotonic() - started, batch)
                is_stopping, skipped = self._shared(stop.is_set, batch)
                metrics |= {"skipped": len(skipped)}
                metrics |= timing.last(self._config.global_batch_size)
                self._note_skipped(skipped)
                if self._run is not None:
                    self._run.add_metrics(metrics)
                self._progress.step(metrics | {"terms": list(_objective(resolved).terms)})
                if is_stopping or step % resolved.save_every == 0 or step == resolved.steps:
                    self._save(step)
                if is_stopping and step < resolved.steps:
                    raise TrainInterrupted(
                        f"stopped after step {step:,} of {resolved.steps:,}, which is saved; run the "
                        "same command to go on"
                    )
        return timing

    def _make_loader(self) -> Loader:
        resolved, config = self._resolved, self._config
        return Loader(
            resolved.cache,
            resolved.teacher.name,
            self._sampler,
            self._images,
            resolved.checkpoint,
            config=LoaderConfig(
                num_workers=resolved.num_workers,
                check_pixels=config.check_pixels,
                sample_timeout_s=config.sample_timeout,
            ),
            towers=config.towers,
            device=resolved.device,
        )

    def _step(self, step: int, batch: Batch) -> dict[str, Any]:
        """Make one step; return its metrics."""
        # Dropout, if a student has any, is a function of seed, step and rank: resuming needs no state.
        torch.manual_seed(_mixed(self._config.seed, step, self._ranks.rank))
        knowledge, norm = self._knowledge(step, batch), 0.0
        is_fitting = step <= self._schedule.alone_steps
        if is_fitting:
            loss = self._gradients.fit_map(batch, knowledge)
        else:
            loss = self._gradients.compute(batch, knowledge)
            parameters = self._distiller.parameters()
            norm = torch.nn.utils.clip_grad_norm_(parameters, self._config.clip_norm).item()
        if not (math.isfinite(loss.total) and math.isfinite(norm)):
            self._optimizer.forget_gradients()
            why = self._why_not_finite(step, batch, loss, norm)
            raise self._ranks.alike(TrainError(why))
        if not is_fitting:
            self._optimizer.step(self._schedule, step)
        return _metrics(step, batch, loss, norm, self._schedule, self._config)

    def _knowledge(self, step: int, batch: Batch) -> Knowledge:
        device = self._resolved.device
        known = self._resolved.train.known_pairs(batch.positions_N, batch.text_rows_M)
        bank = None
        if self._bank is not None:
            drawn = self._bank.draw(step, batch.positions_N, batch.caption_N, batch.text_rows_M)
            teacher_KE = torch.from_numpy(drawn.targets_KE).to(device).float()
            columns = teacher_KE
            if self._pca is not None:
                columns = teacher_KE @ torch.from_numpy(self._pca.map_ED).to(device)
            bank = Columns(
                text=columns,
                caption_N=torch.from_numpy(drawn.caption_N).to(device),
                known_2P=torch.from_numpy(drawn.known_2P).to(device),
                teacher_text_ME=teacher_KE,
            )
        return Knowledge(known_2P=torch.from_numpy(known).to(device), bank=bank)

    def _shared(self, is_stopped: bool, batch: Batch) -> tuple[bool, list[tuple[str, str]]]:
        """Return whether a process was told to stop, and the images that all of them left out."""
        own = torch.tensor([int(is_stopped), len(batch.skipped)], device=self._distiller.device)
        num_stopped, num_skipped = self._ranks.sum(own).tolist()
        lists = self._ranks.gather(batch.skipped) if num_skipped else []
        return num_stopped > 0, [each for skipped in lists for each in skipped]

    def _note_skipped(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Name the first images that could not be used, count the others."""
        for key, reason in skipped:
            self._num_skipped += 1
            if self._num_skipped <= _MOST_NAMED:
                self._progress.say(f"warning: image {key!r} is left out: {reason}")

    def _why_not_finite(self, step: int, batch: Batch, loss: StepLoss, norm: float) -> str:
        """Return what to tell; every process meets the same loss, and asks the others for their images."""
        terms = [
            f"{term} {value}" for term, value in loss.values.items() if not math.isfinite(value)
        ]
        what = (
            f"the loss is not finite ({', '.join(terms)})"
            if terms
            else f"its gradient has norm {norm}"
        )
        keys = _keys(self._resolved, np.concatenate(self._ranks.gather(batch.positions_N)))
        return (
            f"step {step:,}: {what}; the batch: {', '.join(keys)}; the checkpoint before it stays, a "
            "smaller --lr or --dtype float32 may help"
        )

    def _save(self, step: int) -> None:
        def save(run: RunFolder) -> None:
            model = {
                name: t.detach().cpu().contiguous()
                for name, t in self._distiller.state_dict().items()
            }
            optimizer = {name: t.detach().cpu() for name, t in self._optimizer.tensors().items()}
            saved = SavedState(step, self._facts, model, optimizer)
            run.save(saved, keep=self._config.keep_checkpoints)

        self._on_first(save)

    def _first_line(self, done: int) -> str:
        resolved = self._resolved
        going_on = f", going on after step {done:,}" if done else ""
        return (
            f"training {resolved.checkpoint.name} on {resolved.train.num_images:,} images "
            f"({resolved.train.num_captioned:,} with captions) for {resolved.steps:,} steps of "
            f"{self._config.global_batch_size:,}, on {resolved.device}"
            f"{f' and {self._ranks.world_size - 1} more' if self._ranks.world_size > 1 else ''}{going_on}"
        )

    def _say_pca(self, pca: PcaMap) -> None:
        from .finish import pca_lines

        for line in pca_lines(self._resolved, pca):
            self._progress.say(line)


def make_distiller(resolved: Resolved, kind: type[Distiller] = Distiller) -> Distiller:
    """Return what is trained, on its device: the student with its map, scales and biases.

    Random weights depend on the seed alone.
    """
    config, checkpoint = resolved.config, resolved.checkpoint
    torch.manual_seed(config.seed)
    model = load_trainable(checkpoint, towers=config.towers, is_new=config.from_scratch)
    teachers = (math.log(resolved.teacher_scale), resolved.teacher_bias)
    takes_teachers = config.from_scratch or config.towers == "image"
    scale, bias = teachers if takes_teachers else logit_scale_and_bias(checkpoint)
    distiller = kind(
        model,
        checkpoint,
        towers=config.towers,
        compute_dtype=resolved.compute_dtype,
        logit_scale=scale,
        logit_bias=bias,
        teacher_dim=resolved.teacher.embed_dim if resolved.projection == "learned" else None,
        bank=teachers if resolved.has_bank else None,
    )
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    if config.compile:
        vision_tower(model).compile()
        if config.towers == "both":
            model.text_model.compile()
    return distiller.to(resolved.device)


def fit_map(resolved: Resolved) -> PcaMap:
    """Return the PCA map of the train split; what a text of a held-out image has too is left out."""
    images = resolved.cache.image_targets(resolved.teacher.name)
    texts = resolved.cache.text_targets(resolved.teacher.name)
    text_rows = np.setdiff1d(resolved.train.text_rows, resolved.val.text_rows)

    def blocks(targets: Any, rows: Any) -> Iterator[Any]:
        for first in range(0, len(rows), 65_536):
            yield targets.read(rows[first : first + 65_536])

    return fit_pca_map(
        blocks(images, resolved.train.rows_N),
        blocks(texts, text_rows),
        embed_dim=resolved.checkpoint.embed_dim,
    )


def _take_up(run: RunFolder, resolved: Resolved, facts: Mapping[str, Any]) -> list[str]:
    """Begin a run, or see that it is the one that was begun here; return what a person should know.

    Raises:
        SettingError: other settings, another cache or another student than at the start.
    """

    new = as_plain(resolved.config)
    old = run.read_config()
    if (
        old is None or not run.has_checkpoint()
    ):  # until there is one, every setting may still change
        run.write_evaluation({})
        run.write_facts(facts)
        run.write_config(to_yaml(resolved.given, resolved.config))
        if run.model.exists():
            return [
                f"{run.model} is of an earlier training, of which no checkpoint is left: this one begins "
                "anew and replaces it at its end"
            ]
        return []
    known = run.read_facts()
    for name, value in facts.items():
        if known.get(name) != value:
            raise SettingError(
                f"{run.root} was begun with another {'student' if name == 'student' else 'cache'}: {name} "
                f"was {known.get(name)}, now it is {value}; begin another run with another --out"
            )
    refuse_changes(old, new, run=run.root)  # after those, of which derived settings follow
    run.write_config(to_yaml(resolved.given, resolved.config))
    return []


def _steps_to_fit(distiller: Distiller, resolved: Resolved) -> float | None:
    """Return the steps that a learned map needs to see four rows a direction; None without one."""
    if distiller.projection is None:
        return None
    rows = resolved.config.global_batch_size * (
        1 + resolved.train.num_captioned / len(resolved.train)
    )
    return 4 * resolved.checkpoint.embed_dim / rows


def _objective(resolved: Resolved) -> Objective:
    return Objective(
        weights=resolved.weights,
        teacher_scale=resolved.teacher_scale,
        teacher_bias=resolved.teacher_bias,
        bank_labels=resolved.config.bank_labels,
        bank_threshold=resolved.config.bank_threshold,
    )


def _make_bank(resolved: Resolved) -> Bank:
    config = resolved.config
    texts = resolved.cache.text_targets(resolved.teacher.name)
    return Bank(resolved.train, resolved.val, texts, size=config.bank_size, seed=config.seed)


class _Timing:
    """Seconds of the steps, and of waiting for pixels."""

    def __init__(self) -> None:
        self.step_s = self.wait_s = 0.0
        self._last = (0.0, 0.0)

    def add(self, compute_s: float, batch: Batch) -> None:
        self._last = (compute_s + batch.wait_s, batch.wait_s)
        self.step_s += self._last[0]
        self.wait_s += self._last[1]

    def last(self, num_images: int) -> dict[str, float]:
        step_s, wait_s = self._last
        return {"images_per_s": num_images / step_s, "wait_share": wait_s / step_s}


def _metrics(
    step: int,
    batch: Batch,
    loss: StepLoss,
    norm: float,
    schedule: Schedule,
    config: TrainConfig,
) -> dict[str, Any]:
    """Return the line of metrics.jsonl, less its times."""
    assert config.lr is not None
    return {
        "step": step,
        "epoch": batch.epoch,
        "loss": loss.total,
        **loss.values,
        **{f"{term}_floor": floor for term, floor in loss.floors.items()},
        **{f"{term}_gradient_norm": found for term, found in loss.gradient_norms.items()},
        "gradient_norm": norm,
        "lr": config.lr * schedule.student_factor(step),
        "images": loss.counts.num_images,
        "captioned": loss.counts.num_captioned,
        "texts": loss.counts.num_texts,
    }


def _keys(resolved: Resolved, positions_N: Any) -> Sequence[str]:
    rows = resolved.train.rows_N[positions_N]
    found = resolved.cache.samples().filter(pl.col("row").is_in(rows.tolist())).collect()
    return found["key"].to_list()


def _mixed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


class _Stop:
    is_set = False


@contextmanager
def _signals() -> Generator[_Stop]:
    """Note SIGINT and SIGTERM instead of dying of them. A second SIGINT is not held back; SIGTERM may come
    twice, from a batch system and from the process that started this one."""
    stop = _Stop()

    def note(number: int, frame: Any) -> None:
        stop.is_set = True
        signal.signal(signal.SIGINT, old[signal.SIGINT])

    old: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: who runs us there handles signals
        old.clear()
    try:
        yield stop
    finally:
        for number, before in old.items():
            signal.signal(number, before)
