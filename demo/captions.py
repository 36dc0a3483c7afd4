"""Captions of a scene, full or vague.

A full caption has colour and shape of both objects and their relation, starting with either of them; a
third of these have the sizes too. A vague one leaves out the colours, the relation, the shapes, or the small
object. All captions are true.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Literal

from .grammar import LANGUAGES, Language, Mention, Size
from .random_draws import pick, shuffled
from .scenes import OPPOSITE, Scene, Thing

Kind = Literal["full", "sized", "pair", "shapes", "colours", "single", "sized single"]

_FULL: tuple[Kind, ...] = ("full", "full", "sized")
# Mostly shapes: in one batch hardly any two pictures differ only in shape. When one caption in 30 had only
# shapes, and positions varied more, a small model had learned colours and positions after 300 steps but no
# shape after 900.
_VAGUE: tuple[Kind, ...] = ("shapes",) * 7 + ("pair", "pair", "colours", "single", "sized single")


@dataclass(frozen=True, slots=True)
class Caption:
    """A text and its language."""

    text: str
    lang: str


@dataclass(frozen=True, slots=True)
class _Form:
    """The form of a caption, independent of the scene."""

    language: Language
    kind: Kind
    sentence: str
    place: str
    """Words of the relation."""

    is_swapped: bool
    """Starts with the small object."""


def draw_captions(
    scene: Scene, num_captions: int, rng: Random, *, vague_rate: float
) -> list[Caption]:
    """Return different captions of a scene; a language repeats only after all have been used.

    Args:
        scene: the scene.
        num_captions: at most 20; about a hundred exist.
        rng: only its ``random()`` is called.
        vague_rate: probability that a caption is vague.
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
    """Return the name of a large object in each language, as in captions."""
    mention = Mention(thing.colour, thing.shape, "large")
    return {lang: language.phrase(mention)[""] for lang, language in LANGUAGES.items()}


def class_templates() -> dict[str, list[str]]:
    """Return the sentences about a single object, with ``{}`` for it, by language."""
    return {
        lang: [sentence.replace("{a}", "{}") for sentence in language.single]
        for lang, language in LANGUAGES.items()
    }


def every_caption(scene: Scene) -> Iterator[Caption]:
    """Yield all possible captions of a scene, in a fixed order; some repeat."""
    for lang, language in LANGUAGES.items():
        for kind, is_swapped in _kinds():
            places = language.places[OPPOSITE[scene.relation] if is_swapped else scene.relation]
            for sentence, place in product(_sentences(language, kind), places):
                form = _Form(language, kind, sentence, place, is_swapped)
                yield Caption(_render(scene, form), lang)


def _kinds() -> Iterator[tuple[Kind, bool]]:
    """Yield each kind, and whether it starts with the small object."""
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
    return Caption(_render(scene, form), lang)


def _may_swap(kind: Kind) -> bool:
    return kind not in ("single", "sized single")  # these mention only the large object


def _sentences(language: Language, kind: Kind) -> tuple[str, ...]:
    match kind:
        case "pair":
            return language.pair
        case "single" | "sized single":
            return language.single
        case _:
            return language.full


def _render(scene: Scene, form: _Form) -> str:
    large, small = (
        _mention(scene.large, form.kind, "large"),
        _mention(scene.small, form.kind, "small"),
    )
    first, second = (small, large) if form.is_swapped else (large, small)
    phrase = form.language.phrase
    words = {f"a{case}": text for case, text in phrase(first).items()}
    words |= {f"b{case}": text for case, text in phrase(second).items()}
    return form.sentence.format(**words, place=form.place.format(**words))


def _mention(thing: Thing, kind: Kind, size: Size) -> Mention:
    return Mention(
        colour=None if kind == "shapes" else thing.colour,
        shape=None if kind == "colours" else thing.shape,
        size=size if kind in ("sized", "sized single") else None,
    )
