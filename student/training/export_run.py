"""The end of a run: evaluation, RUN/model, the map between the widths, the plot of the losses.

Shape letters in this file: E = the teacher's width, D = the student's.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...siglip import resolve_checkpoint
from ..config import TrainConfig
from ..evaluation.report import result_rows
from ..export.atomic_folder import MARK
from ..export.export import export_image_tower, export_model
from ..export.metadata import PROJECTION
from ..export.model_card import CacheSummary, ModelCard
from ..losses.pca_map import PcaMap
from .distiller import Distiller
from .evaluate_run import evaluate_student, lacks_evaluation
from .plot import loss_plot
from .progress import TrainProgress
from .resolve import Resolved
from .run_folder import RunFolder


def export_run(
    resolved: Resolved,
    distiller: Distiller,
    run: RunFolder,
    pca: PcaMap | None,
    progress: TrainProgress,
) -> None:
    """Evaluate the student, export RUN/model and the map between the widths, plot RUN/loss.png.

    Does nothing if RUN/model was made from the newest checkpoint and that is evaluated.
    """
    made_from = _made_from(resolved, run)
    if made_from == _recorded_source(run) and not lacks_evaluation(resolved, run, "after"):
        return
    progress.stop()
    columns = run.read_evaluation()
    if columns.pop("after", None) is not None:  # of other or unknown weights
        run.write_evaluation(columns)
    evaluate_student(resolved, distiller, run, "after", pca)
    map_ED = _map_of(distiller, pca)
    if map_ED is not None:
        from safetensors.numpy import save

        run.write(PROJECTION, save({"map_ED": np.ascontiguousarray(map_ED)}))
    run.write("loss.png", loss_plot(run.metrics(), title=f"{resolved.checkpoint.name}, distilled"))
    _export(resolved, distiller, run, pca, made_from)


def _map_of(distiller: Distiller, pca: PcaMap | None) -> NDArray[np.float32] | None:
    if distiller.projection is not None:
        return distiller.projection.weight.detach().float().cpu().numpy()
    return None if pca is None else pca.map_ED


def _made_from(resolved: Resolved, run: RunFolder) -> dict[str, Any]:
    """Return what identifies the source of RUN/model."""
    has_teacher_text = resolved.config.teacher_text is not None
    return {
        "weights_sha256": run.checkpoints.newest_weights_sha256(),
        "teacher_text": has_teacher_text,
    }


def _recorded_source(run: RunFolder) -> Any:
    """Return what the present RUN/model was made from; None if that is not recorded."""
    try:
        return json.loads((run.model / MARK).read_text(encoding="utf-8")).get("made_from")
    except (OSError, ValueError, AttributeError):
        return None


def _export(
    resolved: Resolved,
    distiller: Distiller,
    run: RunFolder,
    pca: PcaMap | None,
    made_from: dict[str, Any],
) -> None:
    config = resolved.config
    extra = {
        "steps": resolved.steps,
        "made_from": made_from,
        "teacher": resolved.teacher.name,
        "teacher_identity": resolved.fingerprint()["teacher"],
        "split": _split(config),
    }
    card = _card(resolved, run)
    if config.towers == "both":
        export_model(distiller.model, resolved.checkpoint, run.model, card=card, extra=extra)
        return
    scale, bias = distiller.scale_and_bias
    text = resolve_checkpoint(config.teacher_text) if config.teacher_text else None
    export_image_tower(
        distiller.model,
        float(scale.detach()),
        float(bias.detach()),
        resolved.checkpoint,
        run.model,
        teacher_text=text,
        map_ED=None if pca is None else pca.map_ED,
        card=card,
        extra=extra,
    )


def _split(config: TrainConfig) -> dict[str, Any]:
    if config.val_keys is not None:
        return {"val_keys": config.val_keys}
    return {"val_share": config.val_share}


def _card(resolved: Resolved, run: RunFolder) -> ModelCard:
    import tokenizers
    import torch
    import transformers

    from ... import __version__

    config, cache = resolved.config, resolved.cache
    return ModelCard(
        name=run.root.name,
        student=resolved.checkpoint.given,
        base_model=resolved.checkpoint.given if resolved.checkpoint.revision else None,
        teacher=resolved.teacher.source,
        cache=CacheSummary(
            samples=cache.num_samples,
            captions=resolved.corpus.num_captions,
            texts=cache.num_texts,
            views=cache.num_views,
            corpora=[source.kind for source in cache.sources.values()],
        ),
        objectives={term: weight for term, weight in resolved.weights.items() if weight},
        steps=resolved.steps,
        global_batch_size=config.global_batch_size,
        towers=config.towers,
        results=result_rows(run.read_evaluation()),
        versions={
            "siglip2-cache": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    )
