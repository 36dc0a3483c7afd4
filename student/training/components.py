"""The parts that a training is made of, each built from the resolved settings."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...siglip import (
    NaflexRecipe,
    checkpoint_activations,
    compile_layers,
    load_trainable,
    logit_scale_and_bias,
    vision_tower,
)
from ...store.targets.targets import Targets
from ..config import images_read
from ..data.catalog_index import ImageLookup
from ..data.loader import Loader, LoaderConfig
from ..data.sampler import Sampler
from ..distributed import Ranks
from ..losses.objective import Objective
from ..losses.pca_map import PcaMap, fit_pca_map
from ..positives import parse_positives
from ..selection import parse_selection
from .distiller import Distiller, TeacherHead
from .learnability import LearnabilitySelection
from .parameter_groups import freeze, make_groups
from .patch_dropout import PatchDropout
from .resolve import Resolved
from .schedule import Optimizer, Schedule, make_schedule

_MOST_PCA_ROWS = 1_000_000
"""Most images, and texts, that the PCA map is fitted to: hundreds for each of its directions."""


def make_sampler(resolved: Resolved, images: ImageLookup, ranks: Ranks) -> Sampler:
    """Return the sampler of the train split, for one rank."""
    config, num_read = resolved.config, images_read(resolved.config)
    return Sampler(
        resolved.train,
        global_batch_size=num_read,
        super_batch=num_read // config.global_batch_size,
        views_per_step=config.views_per_step,
        captions_per_image=config.captions_per_image,
        num_views=resolved.cache.num_views,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        groups=images.groups if config.towers != "text" else None,
    )


def make_loader(resolved: Resolved, sampler: Sampler, images: ImageLookup) -> Loader:
    """Return the loader of a sampler's batches; close it after use."""
    config = resolved.config
    return Loader(
        resolved.cache,
        [teacher.targets for teacher in resolved.teachers],
        sampler,
        images,
        resolved.checkpoint,
        config=LoaderConfig(
            num_workers=resolved.num_workers,
            check_pixels=config.check_pixels,
            decode=config.decode,
            sample_timeout_s=config.sample_timeout,
        ),
        towers=config.towers,
        device=resolved.device,
        patch_targets=resolved.cache.patch_targets(resolved.teacher.name)
        if resolved.has_patches
        else None,
    )


def make_distiller(resolved: Resolved, kind: type[Distiller] = Distiller) -> Distiller:
    """Return the student with its map, scales and biases, on its device.

    Random weights depend on the seed alone.
    """
    config, checkpoint = resolved.config, resolved.checkpoint
    torch.manual_seed(config.seed)
    model = load_trainable(checkpoint, towers=config.towers, is_new=config.from_scratch)
    of_teacher = (math.log(resolved.teacher_scale), resolved.teacher_bias)
    starts_as_teacher = config.from_scratch or config.towers != "both"
    scale, bias = of_teacher if starts_as_teacher else logit_scale_and_bias(checkpoint)
    distiller = kind(
        model,
        checkpoint,
        towers=config.towers,
        compute_dtype=resolved.compute_dtype,
        logit_scale=scale,
        logit_bias=bias,
        teachers=[
            TeacherHead(
                embed_dim=teacher.record.embed_dim if resolved.projection == "learned" else None,
                bank=(math.log(teacher.scale), teacher.bias) if teacher.has_bank else None,
            )
            for teacher in resolved.teachers
        ],
        patches=resolved.teacher.patches if resolved.has_patches else None,
    )
    freeze(distiller, config)
    if config.patch_dropout is not None:
        distiller.patch_dropout = PatchDropout(vision_tower(model), config.patch_dropout)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    if config.compile:
        compile_layers(model, is_dynamic=isinstance(checkpoint.image, NaflexRecipe))
    return distiller.to(resolved.device)


def make_selection(resolved: Resolved, ranks: Ranks) -> LearnabilitySelection | None:
    """Return what draws the images of a step from a larger batch; None: all are used."""
    config = resolved.config
    if parse_selection(config.select).kind != "learnability":
        return None
    return LearnabilitySelection(
        ranks,
        count=config.global_batch_size,
        seed=config.seed,
        teacher_logit=(resolved.teacher_scale, resolved.teacher_bias),
    )


def make_optimizer(distiller: Distiller, resolved: Resolved) -> Optimizer:
    """Return AdamW over the distiller's parameters."""
    return Optimizer(distiller, make_groups(distiller, resolved.config))


def make_objectives(resolved: Resolved) -> list[Objective]:
    """Return the loss terms of each teacher with their weights."""
    config = resolved.config
    return [
        Objective(
            weights=teacher.weights,
            teacher=None if i == 0 else teacher.record.name,
            teacher_scale=teacher.scale,
            teacher_bias=teacher.bias,
            bank_labels=config.bank_labels,
            bank_threshold=config.bank_threshold,
            positives=parse_positives(config.positives),
            ignore_similar=config.ignore_similar,
            affinity_scale=config.affinity_scale,
            relations_scale=config.relations_scale,
            drrho_scale=config.drrho_scale,
        )
        for i, teacher in enumerate(resolved.teachers)
    ]


def fit_pca(resolved: Resolved, ranks: Ranks | None = None) -> PcaMap:
    """Return the PCA map of the train split's images and captions, without captions of held-out images.

    Where none is left it is that of all captions of the train split; without any, of all texts of the cache,
    such as prompts; without these, of the images alone. Rank 0 fits it to at most a million images and as
    many texts, drawn by the seed, for all.
    """
    return (ranks or Ranks()).run_on_first(lambda: _fit_pca(resolved))


def _fit_pca(resolved: Resolved) -> PcaMap:
    images = resolved.cache.image_targets(resolved.teacher.name)
    texts = resolved.cache.text_targets(resolved.teacher.name)
    text_rows = _texts_of_pca(resolved, texts)

    def blocks(targets: Any, rows: Any) -> Iterator[Any]:
        if len(rows) > _MOST_PCA_ROWS:
            draw = np.random.default_rng(resolved.config.seed)
            rows = np.sort(draw.choice(rows, _MOST_PCA_ROWS, replace=False))
        for first in range(0, len(rows), 65_536):
            yield targets.read(rows[first : first + 65_536])

    return fit_pca_map(
        blocks(images, resolved.train.rows_N),
        blocks(texts, text_rows),
        embed_dim=resolved.checkpoint.embed_dim,
    )


def _texts_of_pca(resolved: Resolved, texts: Targets) -> NDArray[np.int64]:
    unseen, captions = resolved.unseen_text_rows, resolved.train.drawable_text_rows
    if len(unseen):
        return unseen
    # Few texts, such as names of classes; or no captions.
    return captions if len(captions) else texts.available_rows()


def schedule_of(resolved: Resolved, first_steps: int) -> Schedule:
    """Return the schedule of a run.

    Args:
        resolved: settings, cache and checkpoint.
        first_steps: steps that the run had when it was started, from which warm-up and fit of the map follow.

    Raises:
        SettingError: warmup_steps or decay_steps is more than there are steps for.
    """
    config = resolved.config
    return make_schedule(
        first_steps,
        config.warmup_steps,
        steps_to_fit=_num_steps_to_fit(resolved),
        kind=config.schedule,
    ).lasting(resolved.steps, config.decay_steps)


def _num_steps_to_fit(resolved: Resolved) -> float | None:
    """Return the steps in which a learned map sees four rows a direction; None without a map."""
    if resolved.projection != "learned":
        return None
    of_images = 0 if resolved.config.towers == "text" else 1
    rows = resolved.config.global_batch_size * (
        of_images + resolved.train.num_captioned / len(resolved.train)
    )
    return 4 * resolved.checkpoint.embed_dim / rows
