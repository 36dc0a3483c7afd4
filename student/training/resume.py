"""Beginning a run or resuming it: which settings may differ, and what a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...errors import SettingError, TrainError
from ...formatting import first_line
from ..config_file import as_plain, default_settings, to_yaml
from ..distributed import Ranks
from .checkpoints import SavedState
from .components import schedule_of
from .distiller import Distiller
from .resolve import Resolved
from .run_folder import RunFolder
from .schedule import Optimizer, Schedule

if TYPE_CHECKING:
    from torch import Tensor

_CHANGE_TRAINING = {
    "image_lr",
    "text_lr",
    "lr",
    "projection_lr",
    "dtype",
    "clip_norm",
    "steps",
    "decay_steps",
    "ema",
    "decode",
    "pixels",
}
_PATHS = {
    *("cache", "student", "out", "corpus_roots", "teacher_text", "image_tower"),
    *("cache_dir", "cache_limit"),
}
"""Where files are. Cache and student are compared by hash."""
_MAY_CHANGE = {
    *_CHANGE_TRAINING,
    *("epochs", "max_nonfinite_steps", "eval_samples", "micro_batch_size", "device"),
    *("gradient_checkpointing", "compile", "check_pixels", "decode_workers", "sample_timeout"),
    *("eval_every", "eval_every_samples", "best_metric", "export", "wandb"),
    *("save_every", "keep_checkpoints", "tensorboard"),
}
"""Settings that a run may change when it is resumed."""

_ONCE = {"schedule": "cosine"}
"""What runs did that did not know a setting, where its default is another today."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """How a run begins or resumes."""

    lines: list[str]
    """Lines for the user."""

    first_steps: int
    """Steps that the run had when it was started."""


def begin_or_resume(run: RunFolder, resolved: Resolved, facts: Mapping[str, Any]) -> RunStart:
    """Write the settings of a new run, or compare them with those of the run that is there.

    Changed settings are recorded in run.json, with the step after which they changed.

    Raises:
        SettingError: the run is there and differs in a setting that cannot change, in cache or student.
    """
    old, saved_steps = run.read_config(), run.checkpoints.steps()
    if old is None or not saved_steps:  # without a checkpoint every setting may change
        run.write_evaluation({})
        run.write_facts(facts)
        run.write_config(to_yaml(resolved.given, resolved.config))
        lines: list[str] = []
        if run.model.exists():
            lines.append(
                f"{run.model} is of an earlier training without a checkpoint; this one starts at step 1 "
                "and replaces it at its end"
            )
        return RunStart(lines=lines, first_steps=resolved.steps)
    was, now = old.get("teacher"), as_plain(resolved.config)["teacher"]
    if list(_weights(was).items()) != list(_weights(now).items()):  # their order matters too
        raise _changed(run.root, "teacher", was, now)
    recorded = run.read_facts()
    for name, value in facts.items():
        if recorded.get(name) != value:
            raise SettingError(
                f"{run.root} was started with another {'student' if name == 'student' else 'cache'}: "
                f"{name} was {recorded.get(name)}, now it is {value}; start another run with another "
                "--out"
            )
    # After the facts: some settings are derived from them.
    changes = find_changes(old, as_plain(resolved.config), run=run.root)
    done = saved_steps[-1]
    first_steps = _first_steps(recorded, int(old["steps"]))
    schedule = schedule_of(resolved, first_steps)  # which may refuse, before anything is undone
    undone = _undo_decay(run, old, resolved, schedule) if "steps" in changes else None
    if undone is not None:
        done = undone
    elif resolved.steps < done:
        raise SettingError(
            f"{run.root} has made {done:,} steps, so steps must be at least {done:,}, got "
            f"{resolved.steps:,}"
        )
    lines = [
        f"from step {done + 1:,} on, {name} is {now!r}; it was {was!r}"
        for name, (was, now) in changes.items()
        if name in _CHANGE_TRAINING
    ]
    if "pixels" in changes:
        lines.append(
            "the rest of this epoch is drawn in another order, so some of its images are shown twice and "
            f"others not; --pixels {changes['pixels'][0]} keeps the order"
        )
    if resolved.steps < schedule.alone_steps + schedule.warmup_steps:
        lines.append("the run ends before its warm-up does: the learning rate does not decay")
    if undone is not None:
        lines.append(
            f"the decay to step {saved_steps[-1]:,} is undone: the training goes on after step {done:,}"
        )
    if changes:
        run.record_changes(done, changes)
    if "eval_samples" in changes:
        run.write_evaluation({})
    run.write_config(to_yaml(resolved.given, resolved.config))
    return RunStart(lines=lines, first_steps=first_steps)


def _undo_decay(
    run: RunFolder, old: Mapping[str, Any], resolved: Resolved, schedule: Schedule
) -> int | None:
    """Let a run of a wsd schedule that grows go on from where its decay began.

    Args:
        run: folder of the run.
        old: its settings before.
        resolved: its settings now.
        schedule: its schedule now.

    Returns:
        The step of that checkpoint; None where no later one was removed.

    Raises:
        SettingError: there is no checkpoint from before the decay.
    """
    saved_steps = run.checkpoints.steps()
    if resolved.config.schedule != "wsd" or resolved.steps < int(old["steps"]):
        return None
    start = schedule.lasting(int(old["steps"]), old.get("decay_steps")).decay_start
    assert start is not None
    if saved_steps[-1] <= start:
        return None
    before = [step for step in saved_steps if step <= start]
    if not before:
        raise SettingError(
            f"{run.root} has no checkpoint from before its decay, which began after step {start:,}, so it "
            "cannot grow; start another run with --init-from"
        )
    run.checkpoints.remove_after(before[-1])
    return before[-1]


def find_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], *, run: Path
) -> dict[str, tuple[Any, Any]]:
    """Return the settings other than paths that differ, as (old, new).

    A setting that the old run did not know had its default of then.

    Raises:
        SettingError: a setting differs that cannot change; the message has both values.
    """
    old = {**default_settings(), **_ONCE, **old}
    changes: dict[str, tuple[Any, Any]] = {}
    for name in sorted(new.keys() - _PATHS):
        was, now = old.get(name), new[name]
        if was == now:
            continue
        if name in _MAY_CHANGE:
            changes[name] = was, now
            continue
        if name == "weights":  # a new term has 0
            before, after = cast("dict[str, float]", was), cast("dict[str, float]", now)
            names = [
                term for term in {**before, **after} if before.get(term, 0) != after.get(term, 0)
            ]
            if not names:
                continue
            name, was, now = f"{name}.{names[0]}", before.get(names[0], 0), after.get(names[0], 0)
        raise _changed(run, name, was, now)
    return changes


def _changed(run: Path, name: str, was: Any, now: Any) -> SettingError:
    return SettingError(
        f"{run} was started with {name} {was!r}, now it is {now!r}; resume with the old value, or start "
        "another run with another --out"
    )


def _weights(teacher: str | Mapping[str, float] | None) -> Mapping[str, float]:
    """Return the weight of each teacher of a run's resolved settings."""
    return teacher if isinstance(teacher, Mapping) else {str(teacher): 1.0}


def _first_steps(recorded: Mapping[str, Any], steps: int) -> int:
    """Return the steps that a run had when it was started, from the changes in its run.json."""
    try:
        for change in recorded.get("changes", []):
            if "steps" in change["settings"]:
                return int(change["settings"]["steps"]["old"])
    except (TypeError, KeyError, ValueError) as error:
        raise TrainError(
            f"the changes in run.json are damaged ({first_line(error)}); restore it"
        ) from None
    return steps


def restore_checkpoint(
    step: int,
    saved: SavedState | None,
    distiller: Distiller,
    optimizer: Optimizer,
    ranks: Ranks,
) -> None:
    """Load a checkpoint of rank 0 in all processes, without its moving average.

    Args:
        step: of the checkpoint.
        saved: the checkpoint in rank 0; None in the others.
        distiller: what is trained.
        optimizer: its optimizer.
        ranks: this process among the others.

    Raises:
        TrainError: names or shapes of the tensors differ.
    """
    model = ranks.broadcast_tensors(saved and saved.model, distiller.device)
    moments = ranks.broadcast_tensors(saved and saved.optimizer, distiller.device)
    load_weights(distiller, model, f"the checkpoint of step {step:,}")
    optimizer.load(moments)


def on_host(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return the tensors on the host, contiguous."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def load_weights(distiller: Distiller, tensors: "Mapping[str, Tensor]", what: str) -> None:
    """Load all weights of a distiller.

    Args:
        distiller: what is trained.
        tensors: its state_dict.
        what: where the tensors come from, for the error.

    Raises:
        TrainError: names or shapes of the tensors differ.
    """
    try:
        distiller.load_state_dict(tensors)
    except RuntimeError as error:  # torch names what does not fit
        raise TrainError(
            f"{what} is of another version of this program "
            f"({first_line(error)}); start another run with another --out"
        ) from None
