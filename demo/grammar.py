"""Noun phrases and sentences in five languages, with matching articles, genders and cases."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .scenes import Colour, Relation, Shape

Size = Literal["large", "small"]


@dataclass(frozen=True, slots=True)
class Mention:
    """The properties of one object that a caption mentions; None: not mentioned."""

    colour: Colour | None
    shape: Shape | None
    size: Size | None


Phrase = Callable[[Mention], dict[str, str]]
"""Noun phrases by case: ``""``, in German ``_dat``, in French ``_of`` (with its ``de``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """The phrases and sentences of one language."""

    phrase: Phrase
    places: dict[Relation, tuple[str, ...]]
    """Positions relative to ``{b}``."""

    full: tuple[str, ...]
    """Sentences with ``{a}`` and its ``{place}``."""

    pair: tuple[str, ...]
    """Sentences with ``{a}`` and ``{b}``, without their relation."""

    single: tuple[str, ...]
    """Sentences with ``{a}`` alone."""


def _english(mention: Mention) -> dict[str, str]:
    if mention.shape is None:
        return {"": f"something {mention.colour}"}
    words = [word for word in (mention.size, mention.colour, mention.shape) if word]
    article = "an" if words[0][0] in "aeiou" else "a"
    return {"": " ".join([article, *words])}


_DE_SHAPES = {"circle": "Kreis", "square": "Quadrat", "triangle": "Dreieck", "cross": "Kreuz"}
_DE_COLOURS: dict[Colour, str] = {
    **{"red": "rot", "orange": "orangefarben", "yellow": "gelb", "green": "grün", "blue": "blau"},
    **{"purple": "violett", "brown": "braun", "white": "weiß", "black": "schwarz"},
    "pink": "rosa",  # has no endings
}
_DE_SIZES = {"large": "groß", "small": "klein"}


def _german(mention: Mention) -> dict[str, str]:
    if mention.shape is None:
        assert mention.colour is not None
        name = "Orange" if mention.colour == "orange" else _DE_COLOURS[mention.colour].capitalize()
        return dict.fromkeys(("", "_dat"), f"etwas in {name}")
    adjectives = [_DE_SIZES[mention.size]] if mention.size else []
    adjectives += [_DE_COLOURS[mention.colour]] if mention.colour else []
    ends = {"": "er" if mention.shape == "circle" else "es", "_dat": "en"}  # the others are neuter
    return {
        case: " ".join(
            [
                "einem" if case else "ein",
                *(word if word == "rosa" else word + end for word in adjectives),
                _DE_SHAPES[mention.shape],
            ]
        )
        for case, end in ends.items()
    }


_FR_SHAPES = {"circle": "cercle", "square": "carré", "triangle": "triangle", "cross": "croix"}
_FR_COLOURS: dict[Colour, tuple[str, str]] = {
    "red": ("rouge", "rouge"),
    "orange": ("orange", "orange"),
    "yellow": ("jaune", "jaune"),
    "green": ("vert", "verte"),
    "blue": ("bleu", "bleue"),
    "purple": ("violet", "violette"),
    "pink": ("rose", "rose"),
    "brown": ("marron", "marron"),
    "white": ("blanc", "blanche"),
    "black": ("noir", "noire"),
}
_FR_SIZES = {"large": ("grand", "grande"), "small": ("petit", "petite")}


def _french(mention: Mention) -> dict[str, str]:
    is_feminine = mention.shape == "cross"
    colour = [_FR_COLOURS[mention.colour][is_feminine]] if mention.colour else []
    if mention.shape is None:
        something = " ".join(["quelque chose de", *colour])
        return {"": something, "_of": f"de {something}"}
    size = [_FR_SIZES[mention.size][is_feminine]] if mention.size else []
    article = "une" if is_feminine else "un"
    phrase = " ".join([article, *size, _FR_SHAPES[mention.shape], *colour])
    return {"": phrase, "_of": f"d'{phrase}"}


_ES_SHAPES = {"circle": "círculo", "square": "cuadrado", "triangle": "triángulo", "cross": "cruz"}
_ES_COLOURS: dict[Colour, tuple[str, str]] = {
    "red": ("rojo", "roja"),
    "orange": ("naranja", "naranja"),
    "yellow": ("amarillo", "amarilla"),
    "green": ("verde", "verde"),
    "blue": ("azul", "azul"),
    "purple": ("morado", "morada"),
    "pink": ("rosa", "rosa"),
    "brown": ("marrón", "marrón"),
    "white": ("blanco", "blanca"),
    "black": ("negro", "negra"),
}
_ES_SIZES = {"large": ("grande", "grande"), "small": ("pequeño", "pequeña")}


def _spanish(mention: Mention) -> dict[str, str]:
    is_feminine = mention.shape == "cross"
    colour = [_ES_COLOURS[mention.colour][is_feminine]] if mention.colour else []
    if mention.shape is None:
        return {"": " ".join(["algo", *colour])}
    size = [_ES_SIZES[mention.size][is_feminine]] if mention.size else []
    article = "una" if is_feminine else "un"
    return {"": " ".join([article, _ES_SHAPES[mention.shape], *colour, *size])}


_ZH_SHAPES = {"circle": "圆形", "square": "正方形", "triangle": "三角形", "cross": "十字形"}
_ZH_COLOURS: dict[Colour, str] = {
    **{"red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色"},
    **{"purple": "紫色", "pink": "粉色", "brown": "棕色", "white": "白色", "black": "黑色"},
}
_ZH_SIZES = {"large": "大", "small": "小"}

_ZH_OTHERS = (
    *("一个", "图中", "这是", "有", "和", "在", "位于", "的", "东西"),
    *("左边", "右边", "上方", "下方", "左侧", "右侧", "上面", "下面"),
)
CHINESE_WORDS: tuple[str, ...] = (
    *_ZH_OTHERS,
    *_ZH_SIZES.values(),
    *_ZH_COLOURS.values(),
    *_ZH_SHAPES.values(),
)
"""The words that the tokenizer cuts Chinese sentences into; Chinese has no spaces."""


def _chinese(mention: Mention) -> dict[str, str]:
    colour = f"{_ZH_COLOURS[mention.colour]}的" if mention.colour else ""
    if mention.shape is None:
        return {"": f"{colour}东西"}
    size = _ZH_SIZES[mention.size] if mention.size else ""
    return {"": f"一个{colour}{size}{_ZH_SHAPES[mention.shape]}"}


LANGUAGES: dict[str, Language] = {
    "en": Language(
        phrase=_english,
        places={
            "left": ("left of {b}", "to the left of {b}"),
            "right": ("right of {b}", "to the right of {b}"),
            "above": ("above {b}", "over {b}"),
            "below": ("below {b}", "under {b}"),
        },
        full=("{a} {place}", "{a} is {place}", "{place} there is {a}", "an image of {a} {place}"),
        pair=("{a} and {b}", "an image of {a} and {b}"),
        single=("{a}", "an image of {a}", "this is a photo of {a}"),
    ),
    "de": Language(
        phrase=_german,
        places={
            "left": ("links von {b_dat}", "links neben {b_dat}"),
            "right": ("rechts von {b_dat}", "rechts neben {b_dat}"),
            "above": ("über {b_dat}", "oberhalb von {b_dat}"),
            "below": ("unter {b_dat}", "unterhalb von {b_dat}"),
        },
        full=("{a} {place}", "{a} ist {place}", "{place} ist {a}", "ein Bild von {a_dat} {place}"),
        pair=("{a} und {b}", "ein Bild von {a_dat} und {b_dat}"),
        single=("{a}", "hier ist {a}", "man sieht hier: {a}"),
    ),
    "fr": Language(
        phrase=_french,
        places={
            "left": ("à gauche {b_of}",),
            "right": ("à droite {b_of}",),
            "above": ("au-dessus {b_of}",),
            "below": ("au-dessous {b_of}", "en dessous {b_of}"),
        },
        full=("{a} {place}", "{a} est {place}", "{place} il y a {a}", "une image avec {a} {place}"),
        pair=("{a} et {b}", "une image avec {a} et {b}"),
        single=("{a}", "une image avec {a}", "il y a {a}"),
    ),
    "es": Language(
        phrase=_spanish,
        places={
            "left": ("a la izquierda de {b}",),
            "right": ("a la derecha de {b}",),
            "above": ("encima de {b}", "por encima de {b}"),
            "below": ("debajo de {b}", "por debajo de {b}"),
        },
        full=("{a} {place}", "{a} está {place}", "{place} hay {a}", "una imagen de {a} {place}"),
        pair=("{a} y {b}", "una imagen de {a} y {b}"),
        single=("{a}", "una imagen de {a}", "hay {a}"),
    ),
    "zh": Language(
        phrase=_chinese,
        places={
            "left": ("在{b}的左边", "位于{b}左侧"),
            "right": ("在{b}的右边", "位于{b}右侧"),
            "above": ("在{b}的上方", "位于{b}上面"),
            "below": ("在{b}的下方", "位于{b}下面"),
        },
        full=("{a}{place}", "图中{a}{place}"),
        pair=("{a}和{b}", "图中有{a}和{b}"),
        single=("{a}", "图中有{a}", "这是{a}"),
    ),
}
