"""The scenes of the generated corpus: a large object and a small one beside it.

A *layout* has one object at the left (or above) and one at the right (or below); either of the two may be
large. There are 40 objects, so 40 * 39 * 2 = 3,120 layouts and 6,240 scenes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

Shape = Literal["circle", "square", "triangle", "cross"]
Colour = Literal[
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black"
]
Relation = Literal["left", "right", "above", "below"]

SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "cross")
COLOURS: tuple[Colour, ...] = (
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black"),
)
RELATIONS: tuple[Relation, ...] = ("left", "right", "above", "below")
OPPOSITE: dict[Relation, Relation] = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
}


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """One drawn object, of either size."""

    colour: Colour
    shape: Shape

    @property
    def name(self) -> str:
        """English name, such as ``red circle``; that of the large object is the picture's label."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """The large object, its position relative to the small one, and the small one."""

    large: Thing
    relation: Relation
    small: Thing


@dataclass(frozen=True, slots=True, order=True)
class Layout:
    """Two different objects in a row or in a column."""

    first: Thing
    """The object at the left, or above."""

    relation: Literal["left", "above"]
    """Position of the first relative to the second."""

    second: Thing

    def scene(self, *, is_first_large: bool) -> Scene:
        """Return the scene in which one of the objects is large."""
        if is_first_large:
            return Scene(self.first, self.relation, self.second)
        return Scene(self.second, OPPOSITE[self.relation], self.first)


THINGS: tuple[Thing, ...] = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)


def layouts(*, held_out: bool) -> list[Layout]:
    """Return all held-out or all other layouts, in a fixed order.

    One in three, 1,040 of them, is held out, by its hash: no training corpus shows it, with either object
    large. A tenth would be too few for 1,000 different held-out scenes.
    """
    every = sorted(_all_layouts(), key=_hash)
    num_held_out = len(every) // 3
    return every[:num_held_out] if held_out else every[num_held_out:]


def _all_layouts() -> Iterator[Layout]:
    for first, second in permutations(THINGS, 2):
        yield Layout(first, "left", second)
        yield Layout(first, "above", second)


def _hash(layout: Layout) -> bytes:
    name = f"{layout.first.name} {layout.relation} {layout.second.name}"
    return hashlib.sha256(name.encode()).digest()
