"""Captions of a scene: which words say how much of it.

A full caption gives colour and shape of both objects and how they stand, beginning with either of
them; a third of these name the sizes too. A vague one leaves out the colours, the relation, the
shapes, or the small object. All of them are true.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Literal

from .draws import pick, shuffled
from .grammar import LANGUAGES, Language, Said, Size
from .scenes import OPPOSITE, Scene, Thing

Kind = Literal["full", "sized", "pair", "shapes", "colours", "single", "sized single"]

_FULL: tuple[Kind, ...] = ("full", "full", "sized")
# Mostly shapes: of one batch hardly any two pictures differ by their shapes alone. When one caption
# in 30 told only shapes, and places were wider apart, a small model knew colours and places after
# 300 steps and no shape yet after 900.
_VAGUE: tuple[Kind, ...] = ("shapes",) * 7 + ("pair", "pair", "colours", "single", "sized single")


@dataclass(frozen=True, slots=True)
class Caption:
    """A text and its language."""

    text: str
    lang: str


@dataclass(frozen=True, slots=True)
class _Form:
    """How a caption is put, whatever the scene."""

    language: Language
    kind: Kind
    sentence: str
    place: str
    """Words of the relation."""

    is_swapped: bool
    """Begins with the small object."""


def draw_captions(
    scene: Scene, num_captions: int, rng: Random, *, vague_rate: float
) -> list[Caption]:
    """Different captions of a scene; no language comes again before all have been used.

    Args:
        scene: what they tell of.
        num_captions: at most 20; there are about a hundred different ones.
        rng: drawn from with ``random()`` alone.
        vague_rate: how likely each is vague.
    """
    found: dict[Caption, None] = {}
    langs: list[str] = []
    while len(found) < num_captions:
        langs = langs or shuffled(tuple(LANGUAGES), rng)
        lang = langs.pop()
        size = len(found)
        while len(found) == size:
            found[_draw_caption(scene, lang, rng, vague_rate)] = None
    return list(found)


def class_names(thing: Thing) -> dict[str, str]:
    """What each language calls a picture's large object, as in its captions."""
    said = Said(thing.colour, thing.shape, "large")
    return {lang: language.phrase(said)[""] for lang, language in LANGUAGES.items()}


def class_templates() -> dict[str, list[str]]:
    """The sentences that captions put a lone object into, with ``{}`` for it, by language."""
    return {
        lang: [sentence.replace("{a}", "{}") for sentence in language.single]
        for lang, language in LANGUAGES.items()
    }


def every_caption(scene: Scene) -> Iterator[Caption]:
    """Everything that a caption of a scene may say, in a fixed order; some come again."""
    for lang, language in LANGUAGES.items():
        for kind, is_swapped in _kinds():
            places = language.places[OPPOSITE[scene.relation] if is_swapped else scene.relation]
            for sentence, place in product(_sentences(language, kind), places):
                form = _Form(language, kind, sentence, place, is_swapped)
                yield Caption(_say(scene, form), lang)


def _kinds() -> Iterator[tuple[Kind, bool]]:
    """Each kind, and whether it begins with the small object."""
    for kind in dict.fromkeys(_FULL + _VAGUE):
        yield kind, False
        if _may_swap(kind):
            yield kind, True


def _draw_caption(scene: Scene, lang: str, rng: Random, vague_rate: float) -> Caption:
    language = LANGUAGES[lang]
    kind = pick(_VAGUE if rng.random() < vague_rate else _FULL, rng)
    is_swapped = _may_swap(kind) and rng.random() < 0.5
    relation = OPPOSITE[scene.relation] if is_swapped else scene.relation
    sentence = pick(_sentences(language, kind), rng)
    form = _Form(language, kind, sentence, pick(language.places[relation], rng), is_swapped)
    return Caption(_say(scene, form), lang)


def _may_swap(kind: Kind) -> bool:
    return kind not in ("single", "sized single")  # which speak of the large object


def _sentences(language: Language, kind: Kind) -> tuple[str, ...]:
    match kind:
        case "pair":
            return language.pair
        case "single" | "sized single":
            return language.single
        case _:
            return language.full


def _say(scene: Scene, form: _Form) -> str:
    large, small = _said(scene.large, form.kind, "large"), _said(scene.small, form.kind, "small")
    first, second = (small, large) if form.is_swapped else (large, small)
    phrase = form.language.phrase
    words = {f"a{case}": text for case, text in phrase(first).items()}
    words |= {f"b{case}": text for case, text in phrase(second).items()}
    return form.sentence.format(**words, place=form.place.format(**words))


def _said(thing: Thing, kind: Kind, size: Size) -> Said:
    return Said(
        colour=None if kind == "shapes" else thing.colour,
        shape=None if kind == "colours" else thing.shape,
        size=size if kind in ("sized", "sized single") else None,
    )
