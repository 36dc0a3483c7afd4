"""Zero-shot prompts: every name of every class, in every template of its language.

Which name goes with which template:
- A template without a language takes every name of every class, in any language.
- A template with a language takes the class's name in that language, else its name without a language.
  A class that has neither is refused: "ein Foto von einem dog" is a prompt in no language.
- Names in a language without a template make no prompts, unless a template has no language.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ...errors import SourceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One name of one class."""

    label: str
    """The class, the same for all its names."""

    name: str
    """The text that replaces ``{}`` in a template."""

    lang: str | None = None
    place: str = ""
    """File and line, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A sentence with exactly one ``{}``."""

    text: str
    lang: str | None = None
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text that represents a class."""

    label: str
    template: str
    lang: str | None
    """Language of the template, else of the name."""

    text: str


def class_positions(labels: Iterable[Label]) -> list[int]:
    """Return the position in the file of each label's class, from 0.

    In a plain list each line is a class, also if its name repeats.
    """
    positions: dict[tuple[str, int], int] = {}
    counts: Counter[tuple[str, str | None]] = Counter()
    found: list[int] = []
    for label in labels:
        counts[label.label, label.lang] += 1
        which = label.label, counts[label.label, label.lang]
        found.append(positions.setdefault(which, len(positions)))
    return found


def number_labels(labels: Sequence[Label], corpus_labels: Iterable[str]) -> Sequence[Label]:
    """Return the labels with their class's position in the file, from 0, if the corpus uses such numbers.

    The corpus does if all its labels are such numbers and none is a class of the file. Otherwise the
    labels are returned unchanged.
    """
    numbers = list(map(str, class_positions(labels)))
    found = set(corpus_labels)
    if not found or found & {label.label for label in labels} or not found <= set(numbers):
        return labels
    return [replace(label, label=number) for label, number in zip(labels, numbers, strict=True)]


def make_prompts(labels: Iterable[Label], templates: Sequence[Template]) -> Iterator[Prompt]:
    """Yield every prompt, class by class in order of first appearance, then template by template.

    Raises:
        SourceError: a class has no name in the language of a template.
    """
    names_of: dict[str, list[Label]] = {}
    for label in labels:
        names_of.setdefault(label.label, []).append(label)
    for label, names in names_of.items():
        for template in templates:
            for name in _names_for(template, names):
                yield Prompt(
                    label=label,
                    template=template.text,
                    lang=template.lang or name.lang,
                    # not str.format: a name or template may hold other braces
                    text=template.text.replace("{}", name.name),
                )


def _names_for(template: Template, names: Sequence[Label]) -> Sequence[Label]:
    if template.lang is None:
        return names
    of_language = [name for name in names if _same_language(name.lang, template.lang)]
    found = of_language or [name for name in names if name.lang is None]
    if not found:
        has = ", ".join(sorted({name.lang for name in names if name.lang is not None}))
        raise SourceError(
            f"label {names[0].label!r} has no name in {template.lang}, the language of template "
            f"{template.text!r} ({template.place}); it has {has} ({names[0].place}): "
            "add the name, or leave the template out"
        )
    return found


def _same_language(lang: str | None, other: str) -> bool:
    return lang is not None and lang.casefold() == other.casefold()
