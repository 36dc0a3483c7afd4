"""Export of any checkpoint of a run, finished, stopped or running, as a folder for plain transformers."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from ...errors import SettingError, TrainError
from ...formatting import nearest_name
from ..config import ExportChoice, TrainConfig
from ..config_file import make_config
from ..export.atomic_folder import replaced_atomically
from ..export.export import WeightsDtype
from ..export.metadata import PROJECTION, projection_bytes
from ..export.push import push
from ..launch import Launch
from .check_export import check_export
from .checkpoints import Weights
from .components import fit_pca, make_distiller
from .export_run import export_weights, is_model_of, made_from_of, map_of
from .other_tower import check_same_map
from .resolve import resolve
from .resume import load_weights
from .run_files import CONFIG, RunFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCheckpointConfig:
    """What to export, and where the files of the run are by now."""

    run: Path
    out: Path
    choice: ExportChoice = "last"
    step: int | None = None
    """Checkpoint; None: the newest."""

    cache: str | None = None
    """None: where it was in the training; so for the others."""

    student: str | None = None
    teacher_text: str | None = None
    image_tower: str | None = None

    corpus_roots: Mapping[str, str] | None = None
    """Old folder to new folder, where the corpus has moved."""

    dtype: WeightsDtype = "float32"
    """Dtype of the weights in the folder."""

    is_checked: bool = False
    """Whether to compare the folder, loaded by transformers, with the checkpoint on held-out images."""

    into_teacher_space: bool = False
    """Whether embeddings are to come out in the teacher's space where a runtime can apply the map."""

    def __post_init__(self) -> None:
        if self.dtype not in get_args(WeightsDtype):
            raise SettingError(
                f"dtype must be one of {', '.join(get_args(WeightsDtype))}, got {self.dtype!r}"
            )


def export_checkpoint(config: ExportCheckpointConfig) -> Weights:
    """Write the folder; return where its weights come from.

    The run is only read, and a training may go on in it.

    Raises:
        SettingError: ``run`` is no run, or ``out`` is in it, or exists and is no earlier export.
        TrainError: the run has no such weights.
        ExportError: ``is_checked``, and the folder does not compute what the checkpoint does.
    """
    run = RunFiles(config.run.absolute())
    settings = run.read_config()
    if settings is None:
        raise SettingError(
            f"{config.run} is no run: it has no {CONFIG}; name the --out of a training"
        )
    check_outside(config.run, config.out)
    weights = run.checkpoints.weights(config.choice, config.step)
    tensors = weights.load()  # first, since a running training removes old checkpoints
    of_run = _settings_of(settings, run, config)
    resolved = resolve(
        of_run, Launch(rank=0, world_size=1, local_rank=0, local_world_size=1), "cpu"
    )
    needed = ["teacher"]
    if resolved.projection == "pca":
        # The map is computed anew, from the cache and its selected images.
        needed += ["catalog", "images with a target", "captions with a target"]
        needed += ["texts with a target", "selected images"]
    facts, recorded = resolved.fingerprint(), run.read_facts()
    for name in needed:
        if facts.get(name) == recorded.get(name):
            continue
        if name == "selected images":
            raise TrainError(
                f"select {of_run.select} takes other images than when {config.run} was trained, and its PCA "
                "map depends on them; restore the list of keys"
            )
        raise TrainError(
            f"{of_run.cache} is another cache than that of {config.run}: {name} was "
            f"{recorded.get(name)}, now it is {facts.get(name)}; name the right one by --cache"
        )
    pca = fit_pca(resolved) if resolved.projection == "pca" else None
    check_same_map(resolved.config, resolved.teacher, pca)
    distiller = make_distiller(resolved)
    load_weights(distiller, tensors, str(weights.path.parent))
    map_ED, made_from = map_of(resolved, distiller, pca), made_from_of(resolved, weights)
    export = partial(
        export_weights,
        resolved,
        distiller,
        weights,
        run,
        pca=pca,
        made_from=made_from,
        is_evaluated=is_model_of(run, made_from),
        files=None if map_ED is None else {PROJECTION: projection_bytes(map_ED)},
        dtype=config.dtype,
        into_teacher_space=config.into_teacher_space,
    )
    if not config.is_checked:
        export(config.out)
        return weights
    with replaced_atomically(config.out) as folder:
        export(folder)
        check_export(resolved, distiller, pca, folder, named=f"the export of {config.run}")
    return weights


def push_checkpoint(config: ExportCheckpointConfig, repo_id: str, *, is_private: bool) -> str:
    """Push the folder that export_checkpoint writes, once it has passed its check; return its URL.

    ``config.out`` names the folder in an error, and is not written.

    Raises:
        ExportError: the folder does not compute what the checkpoint does, or the hub refuses it.
        SettingError, TrainError: as export_checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="siglip2-cache-") as name:
        folder = Path(name) / "model"
        export_checkpoint(replace(config, out=folder, is_checked=True))
        return push(folder, repo_id, is_private=is_private, written=config.out)


def check_outside(run: Path, out: Path) -> None:
    """Check that an export does not go into a run.

    Raises:
        SettingError: it does.
    """
    if out.resolve().is_relative_to(run.resolve()):
        raise SettingError(
            f"{out} is in the run {run}, which its training writes; name a folder elsewhere"
        )


def _settings_of(
    settings: dict[str, Any], run: RunFiles, config: ExportCheckpointConfig
) -> TrainConfig:
    """Return the settings of a run, for an export on the CPU.

    Raises:
        TrainError: it has settings of a newer version.
    """
    known = [each.name for each in fields(TrainConfig)]
    for name in settings:
        if name not in known:
            raise TrainError(
                f"{run.root / CONFIG} has a setting {name!r}{nearest_name(name, known)}, which this version "
                "does not know; update siglip2-cache"
            )
    names = ("cache", "student", "teacher_text", "image_tower", "corpus_roots")
    given = {name: getattr(config, name) for name in names}
    moved = {name: value for name, value in given.items() if value is not None}
    return replace(
        make_config(None, {**settings, **moved}),
        compile=False,
        decode_workers=0,
        device="cpu",
        dtype="float32",
    )
