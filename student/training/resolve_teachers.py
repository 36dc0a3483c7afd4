"""The teachers of a run: their records, targets and scales, and the weights of their terms."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import SettingError
from ...formatting import format_count
from ...store.cache import Cache
from ...store.format.teacher_record import TeacherRecord
from ..config import TrainConfig
from ..data.corpus import Corpus
from ..data.train_targets import TrainTargets, first_targets, further_targets
from ..export.metadata import identity_sha256
from ..terms import LossTerm, active_terms, loss_terms


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTeacher:
    """One teacher of a run."""

    record: TeacherRecord
    targets: TrainTargets
    """Of the train split."""

    scale: float
    """Factor of its cosines, exponentiated."""

    bias: float
    weight: float
    weights: Mapping[str, float]
    """Weight of each term, the teacher's included."""

    @property
    def has_text_bank(self) -> bool:
        """Whether a term needs the bank of its texts."""
        return any(term.needs_bank for term in active_terms(self.weights))

    @property
    def has_image_bank(self) -> bool:
        """Whether a term needs the bank of its images."""
        return any(term.needs_image_bank for term in active_terms(self.weights))

    @property
    def has_bank(self) -> bool:
        """Whether it has either."""
        return self.has_text_bank or self.has_image_bank


def teacher_weights(config: TrainConfig, cache: Cache) -> dict[str, float]:
    """Return the weight of each teacher by its name in the cache, the first one first.

    Raises:
        SettingError: there is no such teacher, or the cache has several and none is named.
    """
    if not config.teacher_weights:
        return {cache.teacher(None).name: 1.0}
    return {cache.teacher(name).name: weight for name, weight in config.teacher_weights.items()}


def resolve_teachers(
    config: TrainConfig, cache: Cache, teachers: Mapping[str, float], train: Corpus
) -> list[RunTeacher]:
    """Return the teachers of a run.

    Args:
        config: settings as the user gave them.
        cache: the cache.
        teachers: result of teacher_weights.
        train: images to train on, all with a target by the first teacher.

    Raises:
        SettingError: all weights are 0.
        TrainError: a teacher has no target of these images, or is unfinished.
    """
    found = [
        _resolve(config, cache, name, weight, train, is_first=i == 0)
        for i, (name, weight) in enumerate(teachers.items())
    ]
    if not any(weight for each in found for weight in each.weights.values()):
        raise SettingError("all weights are 0; give one term a weight above 0")
    return found


def _resolve(
    config: TrainConfig, cache: Cache, name: str, weight: float, train: Corpus, *, is_first: bool
) -> RunTeacher:
    record = cache.teacher(name)
    scale = config.teacher_scale or math.exp(record.logit_scale)
    if is_first:
        targets = first_targets(cache, name)
    else:
        targets = further_targets(cache, name, train, allow_partial=config.allow_partial)
    weights = {
        term: of_term * _factor(loss_terms()[term], weight, is_first=is_first)
        for term, of_term in term_weights(config, scale).items()
    }
    _refuse_no_patches(cache, record, weights)
    return RunTeacher(
        record=record,
        targets=targets,
        scale=scale,
        bias=record.logit_bias if config.teacher_bias is None else config.teacher_bias,
        weight=weight,
        weights=weights,
    )


def _factor(term: LossTerm, weight: float, *, is_first: bool) -> float:
    """Return how often a term counts for a teacher of some weight."""
    if not is_first and (term.needs_patches or not term.needs_teacher):
        return 0.0
    return weight if term.needs_teacher else 1.0


def _refuse_no_patches(cache: Cache, record: TeacherRecord, weights: Mapping[str, float]) -> None:
    """Refuse a term that needs patch targets, of a teacher without any.

    Raises:
        SettingError: names the term.
    """
    for term in active_terms(weights):
        if term.needs_patches and record.patches is None:
            raise SettingError(
                f"weights.{term.name} needs patch targets, and teacher {record.name} of {cache.root} has "
                "none; build a cache with --patch-targets, or leave the term out"
            )


def term_weights(config: TrainConfig, scale: float) -> dict[str, float]:
    """Return the weight of each term for a teacher of some scale, without the teacher's weight."""
    defaults = {name: term.default_weight(scale) for name, term in loss_terms().items()}
    return {**defaults, **config.weights}


def further_facts(teachers: list[RunTeacher]) -> dict[str, str]:
    """Return what identifies the teachers after the first."""
    return {
        f"teacher {each.record.name}": (
            f"{identity_sha256(each.record)}, {each.targets.num_missing} images missing"
        )
        for each in teachers[1:]
    }


def missing_lines(teachers: list[RunTeacher]) -> list[str]:
    """Return a line for each teacher that lacks a target of an image or of a text."""
    return [
        f"teacher {each.record.name} has no target of {format_count(count, what)} to train on, which the "
        "others teach"
        for each in teachers
        for what, count in (
            ("image", each.targets.num_missing),
            ("text", each.targets.num_missing_texts),
        )
        if count
    ]
