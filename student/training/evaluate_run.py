"""Evaluation of a run's student on held-out images, and of its PCA map.

Shape letters in this file: E = the teacher's width, D = the student's, N = pairs.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...images.image import ImageRef
from ...siglip import load_model, resolve_checkpoint, text_tower
from ...store.targets.distortion import soft_target_error
from ..data.split import split_policy
from ..distributed import Ranks
from ..evaluation.embeddings import (
    Embeddings,
    student_embeddings,
    teacher_embeddings,
    unit_rows_float32,
)
from ..evaluation.eval_set import Split, choose_eval_set
from ..evaluation.evaluate import evaluate, in_student_space
from ..evaluation.pictures import picture_refs, read_texts
from ..evaluation.report import eval_set_numbers, table_lines, zero_shot_lines
from ..losses.pca_map import PcaMap, cosine_error
from .distiller import Distiller
from .resolve import Resolved
from .run_folder import RunFolder

_EVAL_BATCH = 64


class HeldOutEvaluation:
    """Evaluates a student of a run on held-out images, again and again."""

    def __init__(
        self,
        resolved: Resolved,
        pca: PcaMap | None,
        *,
        max_images: int,
        split: Split = "val",
        ranks: Ranks | None = None,
    ) -> None:
        """Choose the images and read the teacher's embeddings of them.

        Args:
            resolved: settings, cache and checkpoint.
            pca: the fixed map, where there is one.
            max_images: most images; more than those held out are drawn by the seed of the run.
            split: images to choose from.
            ranks: processes that embed together; None: this one alone.
        """
        config, cache = resolved.config, resolved.cache
        self._resolved, self._pca, self._ranks = resolved, pca, ranks or Ranks()
        self.eval_set = choose_eval_set(
            cache, resolved.corpus, split=split, max_images=max_images, seed=config.seed
        )
        self._reference = teacher_embeddings(
            cache, resolved.teacher.name, self.eval_set.rows_N, self.eval_set.text_rows_M
        )

    def teacher(self, *, is_whole: bool = True) -> dict[str, Any]:
        """Return the metrics of the teacher itself; ``is_whole`` as in evaluate()."""
        seed = self._resolved.config.seed
        return evaluate(
            self._reference, self._reference, self.eval_set, is_whole=is_whole, seed=seed
        )

    def metrics(
        self, student: Embeddings, map_ED: NDArray[np.float32] | None, *, is_whole: bool = True
    ) -> dict[str, Any]:
        """Return the metrics of what embeddings() returned; ``is_whole`` as in evaluate()."""
        resolved, seed = self._resolved, self._resolved.config.seed
        has_map = map_ED is not None or resolved.projection != "learned"
        is_mapped = has_map or resolved.config.towers == "text"  # there it is folded into the head
        return evaluate(
            student,
            self._reference,
            self.eval_set,
            map_ED=map_ED,
            is_one_space=resolved.is_pulled and is_mapped,
            is_whole=is_whole,
            seed=seed,
        )

    def embeddings(
        self, distiller: Distiller, name: str, *, has_map: bool = True
    ) -> tuple[Embeddings, NDArray[np.float32] | None]:
        """Return a student's embeddings, in the space in which it is exported, and the map to the teacher's.

        Each process embeds a share and returns all. The student's mode, training or not, is restored.

        Args:
            distiller: the student.
            name: of the embeddings.
            has_map: whether a learned map is more than random by now.

        Raises:
            TrainError: none of the images can be read.
        """
        resolved, config = self._resolved, self._resolved.config
        map_ED = None if self._pca is None else self._pca.map_ED
        images_ND = texts_MD = None
        if config.towers == "image":
            texts_MD = in_student_space(self._reference.texts_MD, map_ED)
        if config.towers == "text":
            images_ND = in_student_space(self._reference.images_ND, map_ED)
        scale, bias = distiller.scale_and_bias
        student = student_embeddings(
            distiller.model,
            resolved.checkpoint,
            *self._images_and_texts(),
            device=resolved.device,
            compute_dtype=resolved.compute_dtype,
            batch_size=_EVAL_BATCH,
            num_workers=resolved.num_workers,
            name=name,
            sha256_N=self._hashes,
            images_ND=images_ND,
            texts_MD=texts_MD,
            logit=(float(scale.detach()), float(bias.detach())),
            ranks=self._ranks,
        )
        if has_map and distiller.projection is not None:
            map_ED = distiller.projection.weight.detach().float().cpu().numpy()
        if map_ED is not None and config.towers == "text" and self._pca is None:
            # As exported: the map is folded into the head, and texts come out in the teacher's space.
            mapped_ME = unit_rows_float32(student.texts_MD @ map_ED.T)
            student, map_ED = replace(student, texts_MD=mapped_ME), None
        return student, map_ED

    def exported(self, folder: Path) -> Embeddings:
        """Return the embeddings of an exported model, on the CPU; NaN for a tower that it lacks."""
        checkpoint, config = resolve_checkpoint(str(folder), needed=()), self._resolved.config
        model = load_model(checkpoint, device="cpu", compute_dtype="float32")
        return student_embeddings(
            text_tower(model) if config.towers == "text" else model,  # there may be no pixels
            checkpoint,
            *self._images_and_texts(),
            device="cpu",
            compute_dtype="float32",
            batch_size=_EVAL_BATCH,
            num_workers=self._resolved.num_workers,
            sha256_N=self._hashes,
        )

    @property
    def _hashes(self) -> NDArray[np.uint8] | None:
        """(N, 32) hashes that the images must have; None: any."""
        never = self._resolved.config.check_pixels == "never"
        return None if never else self.eval_set.sha256_N

    def _images_and_texts(self) -> tuple[list[ImageRef], list[str]]:
        cache, eval_set, kept = self._resolved.cache, self.eval_set, self._resolved.kept
        refs = picture_refs(cache, eval_set.rows_N, kept=kept, sha256_N=self._hashes)
        return refs, read_texts(cache, eval_set.text_rows_M)


def evaluate_student(
    resolved: Resolved,
    distiller: Distiller,
    run: RunFolder | None,
    column: str,
    pca: PcaMap | None,
    ranks: Ranks,
) -> None:
    """Evaluate the student on held-out images; add its column and the teacher's to evaluation.json.

    All processes call it, and each embeds a share of the images and texts.

    Args:
        resolved: settings, cache and checkpoint.
        distiller: the student.
        run: where rank 0 writes the evaluation; None in the others.
        column: ``before`` or ``after``.
        pca: the fixed map, where there is one.
        ranks: this process among the others.
    """
    config = resolved.config
    held_out = ranks.run_together(
        lambda: HeldOutEvaluation(resolved, pca, max_images=config.eval_samples, ranks=ranks)
    )
    student, map_ED = held_out.embeddings(distiller, f"student {column}", has_map=column == "after")

    def write() -> None:
        if run is None:
            return
        columns, eval_set = run.read_evaluation(), held_out.eval_set
        columns["teacher"] = held_out.teacher()
        columns[column] = held_out.metrics(student, map_ED)
        policy = split_policy(config.val_share, config.val_keys)
        columns["gallery"] = eval_set_numbers(eval_set, policy) | {
            "held_out_images": eval_set.num_split_images,
            "captions": eval_set.num_captions,
            "texts_also_in_train": eval_set.num_texts_in_train,
        }
        run.write_evaluation(columns)

    ranks.run_together(write)


def lacks_evaluation(resolved: Resolved, run: RunFolder, column: str) -> bool:
    """Return whether a column is to be evaluated and is not there yet."""
    is_wanted = resolved.config.eval_samples > 0 and resolved.val.num_images > 0
    return is_wanted and column not in run.read_evaluation()


def evaluation_lines(run_evaluation: Mapping[str, Any]) -> list[str]:
    """Return the table of a run's evaluation: teacher, student before, student after."""
    if "after" not in run_evaluation:
        return ["evaluation n/a: no image is held out, or eval_samples is 0"]
    eval_set = run_evaluation["gallery"]
    names = ("teacher", "before", "after")
    columns = {name: run_evaluation[name] for name in names if name in run_evaluation}
    return [
        f"evaluated  {eval_set['images']:,} of {eval_set['held_out_images']:,} held-out images, "
        f"{eval_set['captions']:,} captions, {eval_set['texts_also_in_train'] or 0:,} of them also in train",
        *zero_shot_lines(eval_set),
        *table_lines(columns, eval_set),
    ]


def pca_lines(resolved: Resolved, pca: PcaMap) -> list[str]:
    """Return the energy that the PCA map keeps and its error, on held-out pairs if there are any."""
    is_held_out = resolved.val.num_captioned >= 2
    part = resolved.val if is_held_out else resolved.train
    of_texts = (
        "; there are no texts to fit it to, and it may lose what they need"
        if pca.text_energy is None
        else f", {pca.text_energy:.4f} of the texts'"
    )
    lines = [
        f"pca map    {len(pca.map_ED):,} -> {pca.map_ED.shape[1]:,} keeps {pca.image_energy:.4f} of the "
        f"images' energy{of_texts}"
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
        f"           on {len(positions):,} {where} pairs the mean error of a logit is "
        f"{scale * error.own_mean:.3f} (own pairs), {scale * error.random_mean:.3f} (random pairs), the "
        f"largest {scale * max(error.own_max, error.random_max):.3f}; the teacher's R@1 is {after:.3f} "
        f"with the map, {before:.3f} without"
    )
    changed = soft_target_error(
        (images_NE, texts_NE),
        (pca.apply(images_NE), pca.apply(texts_NE)),
        scale=resolved.teacher_scale,
        bias=resolved.teacher_bias,
    )
    lines.append(
        f"           the map changes the soft targets by {100 * changed.kl_share:.4f} % of their entropy"
    )
    return lines


def _recall(
    images_NE: NDArray[np.float32], texts_NE: NDArray[np.float32], text_rows_N: NDArray[np.int64]
) -> float:
    """Return R@1 of images to texts; a text may belong to several images."""
    nearest_N = (images_NE @ texts_NE.T).argmax(axis=1)
    return float(np.mean(text_rows_N[nearest_N] == text_rows_N))
