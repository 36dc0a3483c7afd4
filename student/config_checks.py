"""Checks of the settings of a training: their bounds, and which go together."""

import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from ..errors import SettingError
from ..formatting import nearest_name
from .caption_weights import split_name
from .positives import parse_positives
from .selection import parse_selection
from .setting import Setting
from .terms import active_terms, loss_terms

_OF_IMAGES = {
    "image_lr": None,
    "freeze_image": None,
    "patch_dropout": None,
    "max_num_patches": None,
    "pixels": "auto",
    "decode": "exact",
}
"""Settings of the image tower and of its pixels, and their defaults."""


def check_config(config: Any, settings: Mapping[str, tuple[Any, Setting]]) -> None:
    """Check the settings of a training.

    Args:
        config: a TrainConfig, whose module imports this one.
        settings: type and setting of each field.

    Raises:
        SettingError: a value is out of its bounds, or does not go with another.
    """
    for name, (hint, setting) in settings.items():
        value = getattr(config, name)
        if isinstance(value, int | float):
            setting.check(name, value)
        choices = choices_of(hint)
        if choices and value is not None and value not in choices:
            raise SettingError(f"{name} {value!r} is not one of {', '.join(choices)}")
    if config.teacher_bias is not None and not math.isfinite(config.teacher_bias):
        raise SettingError(f"teacher_bias must be a finite number, got {config.teacher_bias}")
    if config.teacher == {}:
        raise SettingError("teacher must name at least one teacher; leave it out for the only one")
    check_weights("teacher", config.teacher_weights)
    if len(config.teacher_weights) > 1:
        _check_several_teachers(config)
    parse_positives(config.positives)
    check_weights("caption_weights", config.caption_weights)
    for name in config.caption_weights:
        split_name(name)
    if parse_selection(config.select).kind == "learnability":
        for name, is_other in (
            ("towers", config.towers != "both"),
            ("patch_dropout", config.patch_dropout is not None),
            ("captions_per_image", config.captions_per_image > 1),
        ):
            if is_other:
                raise SettingError(
                    f"select learnability compares whole images and texts of the student, and {name} is "
                    f"{getattr(config, name)}; leave one of them out"
                )
    for term in config.weights:
        if term not in loss_terms():
            known = list(loss_terms())
            raise SettingError(f"weights has no term {term!r}{nearest_name(term, known)}")
    check_weights("weights", config.weights)
    if config.steps is not None and config.epochs is not None:
        raise SettingError(
            f"steps {config.steps} and epochs {config.epochs:g} both say how long: give one"
        )
    if config.val_share is not None and config.val_keys is not None:
        raise SettingError(
            f"val_share {config.val_share:g} and val_keys {config.val_keys!r} both say what is held out: "
            "give one"
        )
    if config.decay_steps is not None and config.schedule != "wsd":
        raise SettingError(f"decay_steps {config.decay_steps} goes with schedule wsd")
    if config.export == "best" and config.eval_every is None:
        raise SettingError("export best needs eval_every: else no step is evaluated")
    if config.export == "ema" and config.ema is None:
        raise SettingError("export ema needs ema, a decay such as 0.9999")
    _check_towers(config)


def _check_several_teachers(config: Any) -> None:
    """Check for settings that go with one teacher."""
    for name, is_given in (
        ("towers", config.towers != "both"),
        ("projection", config.projection == "pca"),
        ("teacher_scale", config.teacher_scale is not None),
        ("teacher_bias", config.teacher_bias is not None),
    ):
        if is_given:
            raise SettingError(
                f"{name} {getattr(config, name)} goes with one teacher, and there are "
                f"{len(config.teacher_weights)}; leave it out, or name one teacher"
            )


def _check_towers(config: Any) -> None:
    """Check for settings of a tower that is not trained."""
    if config.towers == "image" and (config.text_lr, config.freeze_text) != (None, None):
        raise SettingError(
            "text_lr and freeze_text go with towers both: else there is no text tower"
        )
    if config.teacher_text is not None and config.towers != "image":
        raise SettingError("teacher_text goes with towers image: else the student has its own")
    if config.image_tower is not None and config.towers != "text":
        raise SettingError("image_tower goes with towers text: else the student has its own")
    if config.towers == "text":
        for name, default in _OF_IMAGES.items():
            if getattr(config, name) != default:
                raise SettingError(
                    f"{name} goes with an image tower, and towers text trains none; leave it out"
                )
    for term in active_terms(config.weights):
        if term.needs_patches and config.patch_dropout is not None:
            raise SettingError(
                f"weights.{term.name} compares all patches of an image, and patch_dropout "
                f"{config.patch_dropout:g} drops some; leave one of them out"
            )
        for needed, is_needed in (
            ("image", term.needs_image_tower),
            ("text", term.needs_text_tower),
        ):
            if is_needed and config.towers not in ("both", needed):
                article = "an" if needed == "image" else "a"
                raise SettingError(
                    f"weights.{term.name} goes with {article} {needed} tower, and towers {config.towers} "
                    "trains none; leave it out"
                )
    if config.towers == "image" and config.projection == "learned":
        raise SettingError(
            "projection learned goes with towers both: an image tower alone must come out in the "
            "space of the teacher's texts; take pca, or none where widths are equal"
        )


def check_weights(setting: str, weights: Mapping[str, float]) -> None:
    """Check that all weights of a setting are numbers of at least 0.

    Raises:
        SettingError: one is not.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise SettingError(f"{setting}.{name} must be at least 0, got {weight}")


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the values of a Literal, or of one that may be None; empty for other types."""
    is_optional = get_origin(hint) in (types.UnionType, typing.Union)
    for each in get_args(hint) if is_optional else (hint,):
        if get_origin(each) is Literal:
            return get_args(each)
    return ()
