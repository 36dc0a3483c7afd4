"""The registry of loss terms: what settings and command line know of each.

A new term is one file with a function of LossInputs, and one registration, here or in a user's script:

    from siglip2_cache import LossTerm, register_term

    register_term(LossTerm(name="margin", compute=margin, default_weight=lambda scale: 0.0))
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SettingError

_LOSSES = "siglip2_cache.student.losses"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerm:
    """One term of the loss."""

    name: str
    """In --weight, metrics.jsonl and the plot: a Python identifier."""

    compute: Callable[..., Any] | str
    """Function of (LossInputs, Objective) that returns this process's share of the term as a TermValue, or
    its place as ``module:function``, which is imported when a training starts."""

    default_weight: Callable[[float], float]
    """Default weight, given the teacher's scale (exponentiated)."""

    default_words: str = "0"
    """The default weight in words, for the help."""

    needs_teacher: bool = True
    """Whether it compares with a teacher. Of several it is then a term of each, times the teacher's weight;
    else it is a term once, with the first."""

    needs_map: bool = False
    """Whether it compares the student's rows with the teacher's, whose width may be another one."""

    needs_captions: bool = True
    """Whether it has no data where no image has a caption."""

    needs_image_tower: bool = False
    """Whether it needs an image tower that is trained."""

    needs_text_tower: bool = False
    """Whether it needs a text tower that is trained."""

    needs_bank: bool = False
    """Whether it needs the bank of teacher texts."""

    needs_image_bank: bool = False
    """Whether it needs the bank of teacher images."""

    needs_all_images: bool = False
    """Whether it compares with the images of all processes, LossInputs.image_GD, which are then exchanged as
    the texts are."""

    needs_patches: bool = False
    """Whether it compares the student's patches with the teacher's, LossInputs.patch_N."""

    def function(self) -> Callable[..., Any]:
        """Return the function that computes the term."""
        if not isinstance(self.compute, str):
            return self.compute
        module, _, name = self.compute.partition(":")
        return getattr(importlib.import_module(module), name)


_TERMS: dict[str, LossTerm] = {}


def register_term(term: LossTerm) -> None:
    """Add a term; it is then one of --weight, in every process that registers it.

    Raises:
        SettingError: there is another term of this name, or the name is no identifier.
    """
    if not term.name.isidentifier():
        raise SettingError(f"a loss term must be named by an identifier, got {term.name!r}")
    if _TERMS.get(term.name, term) != term:
        raise SettingError(f"there is another loss term {term.name!r}; take another name")
    _TERMS[term.name] = term


def loss_terms() -> dict[str, LossTerm]:
    """Return every term by its name, in the order of registration."""
    return dict(_TERMS)


def active_terms(weights: Mapping[str, float]) -> list[LossTerm]:
    """Return the terms whose weight is above 0."""
    return [term for name, term in _TERMS.items() if weights.get(name, 0) > 0]


def quantity_name(term: str, quantity: str) -> str:
    """Return the name of a quantity of a term: ``soft_floor``, ``soft_floor/NAME`` of a further teacher."""
    name, slash, teacher = term.partition("/")
    return f"{name}_{quantity}{slash}{teacher}"


register_term(
    LossTerm(
        name="soft",
        compute=f"{_LOSSES}.soft:soft_sigmoid",
        default_weight=lambda scale: 1.0,
        default_words="1",
    )
)
register_term(
    LossTerm(
        name="cosine",
        compute=f"{_LOSSES}.cosine:cosine_distillation",
        default_weight=lambda scale: scale,
        default_words="the teacher's scale",
        needs_map=True,
        needs_captions=False,
    )
)
register_term(
    LossTerm(
        name="contrastive",
        compute=f"{_LOSSES}.contrastive:sigmoid_contrastive",
        default_weight=lambda scale: 0.1,
        default_words="0.1",
        needs_teacher=False,
    )
)
register_term(
    LossTerm(
        name="bank",
        compute=f"{_LOSSES}.bank:teacher_text_bank",
        default_weight=lambda scale: 0.0,
        needs_map=True,
        needs_image_tower=True,
        needs_bank=True,
    )
)
register_term(
    LossTerm(
        name="image_bank",
        compute=f"{_LOSSES}.bank:teacher_image_bank",
        default_weight=lambda scale: 0.0,
        needs_map=True,
        needs_text_tower=True,
        needs_image_bank=True,
    )
)
register_term(
    LossTerm(
        name="affinity",
        compute=f"{_LOSSES}.affinity:softmax_affinity",
        default_weight=lambda scale: 0.0,
        needs_all_images=True,
    )
)
register_term(
    LossTerm(
        name="relations",
        compute=f"{_LOSSES}.relations:relations_within_modality",
        default_weight=lambda scale: 0.0,
        needs_captions=False,
        needs_all_images=True,
    )
)
register_term(
    LossTerm(
        name="patch",
        compute=f"{_LOSSES}.patch:patch_distillation",
        default_weight=lambda scale: 0.0,
        needs_captions=False,
        needs_image_tower=True,
        needs_patches=True,
    )
)
register_term(
    LossTerm(
        name="drrho",
        compute=f"{_LOSSES}.drrho:drrho",
        default_weight=lambda scale: 0.0,
        needs_all_images=True,
    )
)
register_term(
    LossTerm(
        name="drrho_sigmoid",
        compute=f"{_LOSSES}.drrho:drrho_sigmoid",
        default_weight=lambda scale: 0.0,
    )
)
