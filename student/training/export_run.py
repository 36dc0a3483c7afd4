"""The end of a run: evaluation, RUN/model, the map between the widths, the plot of the losses.

Shape letters in this file: E = the teacher's width, D = the student's.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import SettingError
from ..config import TrainConfig
from ..distributed import Ranks
from ..evaluation.report import result_rows
from ..export.atomic_folder import MARK
from ..export.export import WeightsDtype, export_model, export_tower
from ..export.metadata import PROJECTION, identity_sha256, projection_bytes
from ..export.model_card import CacheSummary, ModelCard
from ..export.provenance import base_model_of, hub_datasets, language_codes, license_of
from ..losses.pca_map import PcaMap
from .checkpoints import Weights
from .distiller import Distiller
from .evaluate_run import evaluate_student, lacks_evaluation
from .other_tower import other_tower
from .plot import loss_plot
from .progress import TrainProgress
from .resolve import Resolved
from .resume import load_weights
from .run_files import RunFiles
from .run_folder import RunFolder


def export_run(
    resolved: Resolved,
    distiller: Distiller,
    run: RunFolder | None,
    pca: PcaMap | None,
    progress: TrainProgress,
    ranks: Ranks,
) -> None:
    """Evaluate the student, export RUN/model and the map between the widths, plot RUN/loss.png.

    All processes call it: they evaluate together, then rank 0 writes. Does nothing if RUN/model was made from
    the weights that config.export names, and these are evaluated.

    Raises:
        TrainError: the run has no such weights.
    """

    def find() -> tuple[Weights, dict[str, Any]] | None:
        assert run is not None
        weights = run.checkpoints.weights(resolved.config.export)
        made_from = made_from_of(resolved, weights)
        if made_from == _recorded_source(run) and not lacks_evaluation(resolved, run, "after"):
            return None
        columns = run.read_evaluation()
        if columns.pop("after", None) is not None:  # of other or unknown weights
            run.write_evaluation(columns)
        return weights, made_from

    found = ranks.run_on_first(find)
    if found is None:
        return
    weights, made_from = found
    progress.stop()
    if resolved.config.export != "last":  # those are in the distiller
        tensors = ranks.run_together(lambda: None if run is None else weights.load())
        tensors = ranks.broadcast_tensors(tensors, distiller.device)
        load_weights(distiller, tensors, str(weights.path))
    if ranks.run_on_first(lambda: run is not None and lacks_evaluation(resolved, run, "after")):
        evaluate_student(resolved, distiller, run, "after", pca, ranks)
    ranks.run_together(
        lambda: None if run is None else _write(resolved, distiller, weights, run, pca, made_from)
    )


def _write(
    resolved: Resolved,
    distiller: Distiller,
    weights: Weights,
    run: RunFolder,
    pca: PcaMap | None,
    made_from: Mapping[str, Any],
) -> None:
    map_ED = map_of(resolved, distiller, pca)
    if map_ED is not None:
        run.write(PROJECTION, projection_bytes(map_ED))
    run.write("loss.png", loss_plot(run.metrics(), title=f"{resolved.checkpoint.name}, distilled"))
    export_weights(
        resolved, distiller, weights, run, run.model, pca, made_from=made_from, is_evaluated=True
    )


def map_of(
    resolved: Resolved, distiller: Distiller, pca: PcaMap | None
) -> NDArray[np.float32] | None:
    """Return the map from the exported model's space to the teacher's, (E, D).

    None if they are one, or if no term pulled the student towards the teacher's space.
    """
    if not resolved.is_pulled:
        return None
    if distiller.projection is None:
        return None if pca is None else pca.map_ED
    return _learned(distiller) if distiller.has_image else None  # else it is folded into the head


def _text_map(distiller: Distiller, pca: PcaMap | None) -> NDArray[np.float32] | None:
    """Return the map that the head of the text tower takes, (old width, new width); None without one."""
    if distiller.has_image:  # the text tower is the teacher's
        return None if pca is None else pca.map_ED
    return None if distiller.projection is None else _learned(distiller).T


def _learned(distiller: Distiller) -> NDArray[np.float32]:
    assert distiller.projection is not None
    return distiller.projection.weight.detach().float().cpu().numpy()


def made_from_of(resolved: Resolved, weights: Weights) -> dict[str, Any]:
    """Return what identifies the source of an exported model."""
    config = resolved.config
    made_from = {
        "weights_sha256": weights.sha256(),
        "teacher_text": config.teacher_text is not None,
    }
    if config.image_tower is not None:
        made_from["image_tower"] = True
    return made_from


def _recorded_source(run: RunFiles) -> Any:
    """Return what the present RUN/model was made from; None if that is not recorded."""
    try:
        return json.loads((run.model / MARK).read_text(encoding="utf-8")).get("made_from")
    except (OSError, ValueError, AttributeError):
        return None


def is_model_of(run: RunFiles, made_from: Mapping[str, Any]) -> bool:
    """Return whether RUN/model, and with it RUN/evaluation.json, is of the weights of ``made_from``."""
    recorded = _recorded_source(run)
    sha256 = made_from["weights_sha256"]
    return isinstance(recorded, dict) and recorded.get("weights_sha256") == sha256


def export_weights(
    resolved: Resolved,
    distiller: Distiller,
    weights: Weights,
    run: RunFiles,
    out: Path,
    pca: PcaMap | None,
    *,
    made_from: Mapping[str, Any],
    is_evaluated: bool,
    files: Mapping[str, bytes] | None = None,
    dtype: WeightsDtype = "float32",
    into_teacher_space: bool = False,
) -> None:
    """Write a folder for plain transformers.

    Args:
        resolved: settings, cache and checkpoint.
        distiller: holds the weights.
        weights: where they come from.
        run: has the evaluation.
        out: folder to write; an earlier export is replaced.
        pca: the fixed map, where there is one.
        made_from: result of made_from_of.
        is_evaluated: whether the run's evaluation is of these weights, for the card.
        files: more files to write, by name.
        dtype: dtype of the weights.
        into_teacher_space: whether sentence-transformers is to give embeddings in the teacher's space.

    Raises:
        SettingError: ``out`` exists and is no earlier export.
        DiskFullError: the disk is full; ``out`` is unchanged.
    """
    config = resolved.config
    extra = {
        "steps": weights.step,
        "weights": weights.kind,
        "made_from": made_from,
        "teacher": resolved.teacher.name,
        **(
            {"teachers": {each.record.name: each.weight for each in resolved.teachers}}
            if len(resolved.teachers) > 1
            else {}
        ),
        "teacher_identity": identity_sha256(resolved.teacher),
        "split": _split(config),
        "space": _space(resolved),
        "base_model": base_model_of(resolved.checkpoint),
        "license": license_of(resolved.checkpoint),
    }
    to_teacher = map_of(resolved, distiller, pca) if into_teacher_space else None
    if into_teacher_space and to_teacher is None and extra["space"] != "teacher":
        raise SettingError(
            f"{run.root} has no map to the teacher's space: it was trained with projection "
            f"{resolved.projection} and without the cosine term, so its space is its own; leave out "
            "--into-teacher-space"
        )
    card = _card(resolved, run, weights, is_evaluated=is_evaluated)
    if config.towers == "both":
        export_model(
            distiller.model,
            resolved.checkpoint,
            out,
            card=card,
            extra=extra,
            files=files,
            dtype=dtype,
            to_teacher_ED=to_teacher,
        )
        return
    scale, bias = distiller.scale_and_bias
    export_tower(
        distiller.model,
        float(scale.detach()),
        float(bias.detach()),
        resolved.checkpoint,
        out,
        other=other_tower(config),
        text_map=_text_map(distiller, pca),
        card=card,
        extra=extra,
        files=files,
        dtype=dtype,
        to_teacher_ED=to_teacher,
    )


def _space(resolved: Resolved) -> str | None:
    """Return the space of the exported embeddings, as ModelMetadata; None: the student's own."""
    if not resolved.is_pulled:
        return None
    if resolved.projection == "pca":
        return "pca"
    is_folded = resolved.projection == "none" or resolved.config.towers == "text"
    return "teacher" if is_folded else None


def _split(config: TrainConfig) -> dict[str, Any]:
    if config.val_keys is not None:
        return {"val_keys": config.val_keys}
    return {"val_share": config.val_share}


def _card(resolved: Resolved, run: RunFiles, weights: Weights, *, is_evaluated: bool) -> ModelCard:
    import tokenizers
    import torch

    from ...version import __version__

    config, cache = resolved.config, resolved.cache
    return ModelCard(
        name=run.root.resolve().name,
        student=resolved.checkpoint.given,
        base_model=base_model_of(resolved.checkpoint),
        license=license_of(resolved.checkpoint),
        datasets=hub_datasets(source.location for source in cache.sources.values()),
        languages=language_codes(resolved.corpus.langs),
        teachers=[each.record.source for each in resolved.teachers],
        cache=CacheSummary(
            samples=cache.num_samples,
            captions=resolved.corpus.num_captions,
            texts=cache.num_texts,
            views=cache.num_views,
            corpora=[source.kind for source in cache.sources.values()],
        ),
        objectives={term: weight for term, weight in resolved.weights.items() if weight},
        steps=weights.step,
        is_average=weights.kind == "ema",
        global_batch_size=config.global_batch_size,
        towers=config.towers,
        results=result_rows(run.read_evaluation()) if is_evaluated else (),
        versions={
            "siglip2-cache": __version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "tokenizers": tokenizers.__version__,
        },
    )
