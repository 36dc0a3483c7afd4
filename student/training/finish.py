"""What a training is worth, and what it leaves: evaluation, the exported model, the plot.

Shape letters in this file: E = the teacher's width, D = the student's.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...siglip import resolve_checkpoint
from ..config import TrainConfig
from ..data.split import split_policy
from ..evaluation.evaluate import (
    choose_gallery,
    evaluate,
    gallery_numbers,
    map_texts,
    student_embeddings,
    table_lines,
    teacher_embeddings,
    zero_shot_lines,
)
from ..evaluation.report import result_rows
from ..export.atomic_folder import MARK
from ..export.export import export_image_tower, export_model
from ..export.metadata import PROJECTION
from ..export.model_card import CacheSummary, ModelCard
from ..losses.pca_map import PcaMap, cosine_error
from .distiller import Distiller
from .plot import loss_plot
from .progress import TrainProgress
from .resolve import Resolved
from .run_folder import RunFolder

_EVAL_BATCH = 64


def evaluate_student(
    resolved: Resolved, distiller: Distiller, run: RunFolder, column: str, pca: PcaMap | None
) -> None:
    """Evaluate the student on held-out images and add the column to evaluation.json, the teacher's too.

    Nothing happens where no image is held out or config.eval_samples is 0.
    """
    config, cache = resolved.config, resolved.cache
    columns = run.read_evaluation()
    if not config.eval_samples or not resolved.val.num_images or column in columns:
        return
    policy = split_policy(config.val_share, config.val_keys)
    gallery = choose_gallery(
        cache, resolved.corpus, split="val", max_images=config.eval_samples, seed=config.seed
    )
    rows = gallery.rows_N
    reference = teacher_embeddings(cache, resolved.teacher.name, rows, gallery.text_rows_M)
    texts_MD, logit = None, None
    map_ED = None if pca is None else pca.map_ED
    if config.towers == "image":
        scale, bias = distiller.scale_and_bias
        texts_MD, logit = (
            map_texts(reference, map_ED),
            (float(scale.detach()), float(bias.detach())),
        )
    student = student_embeddings(
        distiller.model,
        resolved.checkpoint,
        cache,
        rows,
        gallery.text_rows_M,
        device=resolved.device,
        compute_dtype=resolved.compute_dtype,
        batch_size=_EVAL_BATCH,
        num_workers=resolved.num_workers,
        name=f"student {column}",
        sha256_N=None if config.check_pixels == "never" else gallery.sha256_N,
        texts_MD=texts_MD,
        logit=logit,
    )
    if column == "after" and distiller.projection is not None:  # before, it is random
        map_ED = distiller.projection.weight.detach().float().cpu().numpy()
    columns["teacher"] = evaluate(reference, reference, gallery, seed=config.seed)
    columns[column] = evaluate(student, reference, gallery, map_ED=map_ED, seed=config.seed)
    columns["gallery"] = gallery_numbers(gallery, policy) | {
        "held_out_images": gallery.num_split_images,
        "captions": gallery.num_captions,
        "texts_also_in_train": gallery.num_texts_in_train,
    }
    run.write_evaluation(columns)


def finish(
    resolved: Resolved,
    distiller: Distiller,
    run: RunFolder,
    pca: PcaMap | None,
    progress: TrainProgress,
) -> None:
    """Evaluate, export RUN/model and the map, draw RUN/loss.png; nothing where all that was done before
    with the weights of the last step.
    """
    made_from = _made_from(resolved, run)
    if made_from == _noted(run):
        return
    progress.stop()
    columns = run.read_evaluation()
    if columns.pop("after", None) is not None:  # of other weights, or not known of which
        run.write_evaluation(columns)
    evaluate_student(resolved, distiller, run, "after", pca)
    map_ED = _map_of(distiller, pca)
    if map_ED is not None:
        from safetensors.numpy import save

        run.write(PROJECTION, save({"map_ED": np.ascontiguousarray(map_ED)}))
    run.write("loss.png", loss_plot(run.metrics(), title=f"{resolved.checkpoint.name}, distilled"))
    _export(resolved, distiller, run, pca, made_from)


def evaluation_lines(run_evaluation: Mapping[str, Any]) -> list[str]:
    """Return the table of a run: teacher, student before, student after."""
    if "after" not in run_evaluation:
        return ["evaluation n/a: no image is held out, or eval_samples is 0"]
    gallery = run_evaluation["gallery"]
    names = {"teacher": "teacher", "before": "before", "after": "after"}
    columns = {names[name]: run_evaluation[name] for name in names if name in run_evaluation}
    return [
        f"evaluated  {gallery['images']:,} of {gallery['held_out_images']:,} held-out images, "
        f"{gallery['captions']:,} captions; {gallery['texts_also_in_train'] or 0:,} of their texts "
        "also stand in train",
        *zero_shot_lines(gallery),
        *table_lines(columns, gallery),
    ]


def pca_lines(resolved: Resolved, pca: PcaMap) -> list[str]:
    """Return what the PCA map keeps and what it costs, on held-out rows where there are some."""
    is_held_out = resolved.val.num_captioned >= 2
    part = resolved.val if is_held_out else resolved.train
    lines = [
        f"pca map    {len(pca.map_ED):,} -> {pca.map_ED.shape[1]:,} keeps {pca.image_energy:.4f} of the "
        f"images' energy, {pca.text_energy:.4f} of the texts'"
    ]
    positions = np.flatnonzero(part.caption_counts)[:1000]
    if len(positions) < 2:
        return lines
    images_NE = resolved.cache.image_targets(resolved.teacher.name).read(part.rows_N[positions])
    text_rows = part.caption_text_row[part.caption_start[positions]]
    texts_NE = resolved.cache.text_targets(resolved.teacher.name).read(text_rows)
    error = cosine_error(pca, images_NE, texts_NE)
    before, after = (
        _recall(images, texts, text_rows)
        for images, texts in (
            (images_NE.astype(np.float32), texts_NE.astype(np.float32)),
            (pca.apply(images_NE), pca.apply(texts_NE)),
        )
    )
    where = "held-out" if is_held_out else "training"
    scale = resolved.teacher_scale
    lines.append(
        f"           on {len(positions):,} {where} pairs logits are off by {scale * error.own_mean:.3f} "
        f"on average (own pairs), {scale * error.random_mean:.3f} (others), at most "
        f"{scale * max(error.own_max, error.random_max):.3f}; the teacher's R@1 among them is "
        f"{after:.3f} where it was {before:.3f}"
    )
    return lines


def _recall(
    images_NE: NDArray[np.float32], texts_NE: NDArray[np.float32], text_rows_N: NDArray[np.int64]
) -> float:
    """Return the share of images nearest to their own text, which may be that of others, too."""
    nearest_N = (images_NE @ texts_NE.T).argmax(axis=1)
    return float(np.mean(text_rows_N[nearest_N] == text_rows_N))


def _map_of(distiller: Distiller, pca: PcaMap | None) -> NDArray[np.float32] | None:
    if distiller.projection is not None:
        return distiller.projection.weight.detach().float().cpu().numpy()
    return None if pca is None else pca.map_ED


def _made_from(resolved: Resolved, run: RunFolder) -> dict[str, Any]:
    """Return what RUN/model is made from, by which an earlier one is known."""
    has_teacher_text = resolved.config.teacher_text is not None
    return {"weights_sha256": run.weights_sha256(), "teacher_text": has_teacher_text}


def _noted(run: RunFolder) -> Any:
    """Return what the RUN/model that is there was made from; None where nobody noted that."""
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
