"""Beginning a run or resuming it: which settings may differ, and what a checkpoint holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ...errors import SettingError, TrainError
from ...formatting import first_line
from ..config_file import as_plain, to_yaml
from ..distributed import Ranks
from .checkpoints import SavedState
from .distiller import Distiller
from .resolve import Resolved
from .run_folder import RunFolder
from .schedule import Optimizer

_MAY_CHANGE = {
    *("cache", "student", "out", "corpus_roots", "teacher_text", "micro_batch_size", "device"),
    *("gradient_checkpointing", "compile", "check_pixels", "decode_workers", "sample_timeout"),
    *("save_every", "keep_checkpoints", "tensorboard", "cache_dir", "cache_limit"),
}
"""Settings that only say where files are and how to compute. (Cache and student are compared by hash.)"""


def begin_or_resume(run: RunFolder, resolved: Resolved, facts: Mapping[str, Any]) -> list[str]:
    """Write the settings of a new run, or compare them with those of the run that is there.

    Returns:
        Lines for the user.

    Raises:
        SettingError: the run is there and has other settings, another cache or another student.
    """
    old = run.read_config()
    if old is None or not run.checkpoints.steps():  # without a checkpoint every setting may change
        run.write_evaluation({})
        run.write_facts(facts)
        run.write_config(to_yaml(resolved.given, resolved.config))
        if run.model.exists():
            return [
                f"{run.model} is of an earlier training without a checkpoint; this one starts at step 1 "
                "and replaces it at its end"
            ]
        return []
    recorded = run.read_facts()
    for name, value in facts.items():
        if recorded.get(name) != value:
            raise SettingError(
                f"{run.root} was started with another {'student' if name == 'student' else 'cache'}: "
                f"{name} was {recorded.get(name)}, now it is {value}; start another run with another "
                "--out"
            )
    # After the facts: some settings are derived from them.
    refuse_changes(old, as_plain(resolved.config), run=run.root)
    run.write_config(to_yaml(resolved.given, resolved.config))
    return []


def refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any], *, run: Path) -> None:
    """Refuse to resume a run with other settings.

    Raises:
        SettingError: names the first setting that differs, with both values.
    """
    for name in sorted(new.keys() - _MAY_CHANGE):
        was, now = old.get(name, "not known"), new[name]
        if was == now:
            continue
        if isinstance(was, Mapping) and isinstance(now, Mapping):  # weights: the first that differs
            terms = cast("list[str]", [term for term in now if was.get(term) != now[term]])
            if terms:
                name, was, now = f"{name}.{terms[0]}", was.get(terms[0], "not known"), now[terms[0]]
        raise SettingError(
            f"{run} was started with {name} {was!r}, now it is {now!r}; resume with the old value, or "
            "start another run with another --out"
        )


def pack_checkpoint(
    step: int, facts: Mapping[str, Any], distiller: Distiller, optimizer: Optimizer
) -> SavedState:
    """Return the state after a step, on the host."""
    model = {name: t.detach().cpu().contiguous() for name, t in distiller.state_dict().items()}
    moments = {name: t.detach().cpu() for name, t in optimizer.tensors().items()}
    return SavedState(step, facts, model, moments)


def restore_checkpoint(
    step: int, saved: SavedState | None, distiller: Distiller, optimizer: Optimizer, ranks: Ranks
) -> None:
    """Load a checkpoint of rank 0 in all processes.

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
    try:
        distiller.load_state_dict(model)
    except RuntimeError as error:  # torch names what does not fit
        raise TrainError(
            f"the checkpoint of step {step:,} is of another version of this program "
            f"({first_line(error)}); start another run with another --out"
        ) from None
    optimizer.load(moments)
