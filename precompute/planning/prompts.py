"""Zero-shot prompts: every name of every class, put into every template of its language.

A labels file names the classes, a templates file the sentences around them. Both are short and
written by hand, so the first thing wrong with one is an error that names the line.

Which name goes with which template:
- A template without language takes every name of every class, whatever the name's language.
- A template of a language takes the class's name in that language, else its name without language.
  A class that has neither is refused: "ein Foto von einem dog" is no prompt in any language.
- Names in a language that no template has, and no template without language, make no prompts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from ...errors import SourceError
from ..sources.fields.captions import clean_name, clean_text
from ..sources.fields.columns import LABEL_NAMES, LANG_NAMES, TableColumns, first_column, show_names
from ..sources.readers.table_rows import BadRow, column_names, read_rows
from ..sources.text import describe, is_unicode, parse_json

_ACCEPTED = ".txt, .json, .csv, .tsv or .jsonl"
_NAME_COLUMNS = ("name", "names")
_TEMPLATE_COLUMNS = ("template", "templates", "prompt", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One name of one class."""

    label: str
    """The class: one for all its names."""

    name: str
    """What a template says for it."""

    lang: str | None = None
    place: str = ""
    """Where it was read, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A sentence with exactly one ``{}``."""

    text: str
    lang: str | None = None
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text that stands for a class."""

    label: str
    template: str
    lang: str | None
    """Language of the template, else that of the name."""

    text: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line, row or item of a file, before it is a label or a template."""

    place: str
    label: object
    text: object
    lang: object = None


def read_labels(path: str | Path) -> list[Label]:
    """The names of the classes, in the file's order.

    A .txt has one class a line. A .json is a list of names; an object of parallel lists by
    language, where the first list also names the classes; or an object by class, of names by
    language (or of one name). Other tables have the columns label, name (default: the label), lang.

    Raises:
        SourceError: the file is empty or malformed, or two lines name one class in one language.
    """
    path = Path(path)
    labels = [_label(entry) for entry in _entries(path, _labels_of_json, _labels_of_table)]
    _refuse_duplicates("label", ((label.label, label.lang, label.place) for label in labels))
    return labels


def read_templates(path: str | Path) -> list[Template]:
    """The templates, in the file's order.

    A .txt has one a line. A .json is a list, or an object of lists by language. Other tables have
    the columns template and lang.

    Raises:
        SourceError: the file is empty or malformed, a template has no ``{}`` or several, or two
            lines are equal: the second would count twice in a class's mean.
    """
    path = Path(path)
    entries = _entries(path, _templates_of_json, _templates_of_table)
    templates = [_template(entry) for entry in entries]
    _refuse_duplicates("template", ((each.text, each.lang, each.place) for each in templates))
    return templates


def by_position(labels: Sequence[Label], corpus_labels: Iterable[str]) -> Sequence[Label]:
    """Return the labels under the numbers that a corpus calls its classes, 0 the first of the file.

    So they are where the corpus has nothing but such numbers, and none is a class of the file; else
    they stay as they are.
    """
    classes = list(dict.fromkeys(label.label for label in labels))
    numbers = {str(number): name for number, name in enumerate(classes)}
    found = set(corpus_labels)
    if not found or found & set(classes) or not found <= numbers.keys():
        return labels
    number_of = {name: number for number, name in numbers.items()}
    return [replace(label, label=number_of[label.label]) for label in labels]


def make_prompts(labels: Iterable[Label], templates: Sequence[Template]) -> Iterator[Prompt]:
    """Every prompt, class by class in order of first appearance, template by template within.

    Raises:
        SourceError: a template's language in which a class has no name.
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


def _label(entry: _Entry) -> Label:
    label = _checked(clean_name, entry.label, "the label", entry.place)
    name = _checked(clean_name, entry.text, "the name", entry.place)
    if not label or not name:
        raise SourceError(f"{entry.place}: the {'name' if label else 'label'} is empty")
    return Label(label=label, name=name, lang=_lang(entry), place=entry.place)


def _template(entry: _Entry) -> Template:
    text = _checked(clean_text, entry.text, "the template", entry.place) or ""
    num_holes = text.count("{}")
    if num_holes != 1:
        raise SourceError(
            f"{entry.place}: template {text!r} holds {{}} {num_holes} times; "
            "expected once, where the name of the class goes"
        )
    return Template(text=text, lang=_lang(entry), place=entry.place)


def _lang(entry: _Entry) -> str | None:
    return _checked(clean_name, entry.lang, "the language", entry.place)


def _checked(
    clean: Callable[[object, str], str | None], value: object, what: str, place: str
) -> str | None:
    try:
        return clean(value, what)
    except ValueError as error:
        raise SourceError(f"{place}: {error}") from error


def _refuse_duplicates(what: str, entries: Iterable[tuple[str, str | None, str]]) -> None:
    places: dict[tuple[str, str | None], str] = {}
    for text, lang, place in entries:
        first = places.setdefault((text, lang), place)
        if first != place:
            of_language = f" in {lang}" if lang is not None else ""
            raise SourceError(f"{what} {text!r}{of_language} stands twice: {first} and {place}")


# --- files: each kind gives entries, in order ----------------------------------------------------


def _entries(
    path: Path,
    of_json: Callable[[Path, object], Iterator[_Entry]],
    of_table: Callable[[Path], Iterator[_Entry]],
) -> list[_Entry]:
    if not path.is_file():
        raise SourceError(f"there is no file {path}; expected one ending in {_ACCEPTED}")
    match path.suffix.lower():
        case ".txt":
            entries = list(_lines(path))
        case ".json":
            entries = list(of_json(path, _load_json(path)))
        case ".csv" | ".tsv" | ".jsonl":
            entries = list(of_table(path))
        case _:
            raise SourceError(f"{path} is of no kind that can be read; expected {_ACCEPTED}")
    if not entries:
        raise SourceError(f"{path} is empty; expected at least one line")
    return entries


def _lines(path: Path) -> Iterator[_Entry]:
    # universal newlines; splitlines() would also split at U+2028 and the like
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            place = f"{path} line {number}"
            if not is_unicode(line):
                raise SourceError(f"{place} is not UTF-8; save the file as UTF-8")
            if line.strip():
                yield _Entry(place, label=line, text=line)


def _load_json(path: Path) -> object:
    doubled: list[str] = []

    def without_doubles(pairs: list[tuple[str, object]]) -> object:
        names = [name for name, _ in pairs]
        doubled.extend(name for name in dict.fromkeys(names) if names.count(name) > 1)
        return dict(pairs)

    try:
        value = parse_json(path.read_text(encoding="utf-8-sig"), without_doubles)
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8; save the file as UTF-8") from error
    except ValueError as error:
        raise SourceError(f"{path}: {error}") from error
    if doubled:  # JSON readers keep the last one and say nothing
        raise SourceError(f"{path}: the name {doubled[0]!r} stands twice in one object")
    return value


def _labels_of_json(path: Path, value: object) -> Iterator[_Entry]:
    if isinstance(value, list):
        for number, name in enumerate(cast(list[object], value), 1):
            yield _Entry(f"{path} item {number}", label=name, text=name)
        return
    fields = _object(path, value)
    if fields and all(isinstance(names, list) for names in fields.values()):
        yield from _parallel_labels(path, cast(dict[str, list[object]], fields))
        return
    for label, names in fields.items():
        place = f"{path} label {label!r}"
        if isinstance(names, dict):
            for lang, name in cast(dict[str, object], names).items():
                yield _Entry(f"{place} in {lang}", label=label, text=name, lang=lang)
        else:
            yield _Entry(place, label=label, text=names)


def _parallel_labels(path: Path, names_of: dict[str, list[object]]) -> Iterator[_Entry]:
    counts = {lang: len(names) for lang, names in names_of.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} in {lang}" for lang, count in counts.items())
        raise SourceError(f"{path}: the languages have different numbers of names: {shown}")
    for number, names in enumerate(zip(*names_of.values(), strict=True), 1):
        for lang, name in zip(names_of, names, strict=True):
            yield _Entry(f"{path} {lang} item {number}", label=names[0], text=name, lang=lang)


def _templates_of_json(path: Path, value: object) -> Iterator[_Entry]:
    if isinstance(value, list):
        for number, text in enumerate(cast(list[object], value), 1):
            yield _Entry(f"{path} item {number}", label=None, text=text)
        return
    for lang, texts in _object(path, value).items():
        if not isinstance(texts, list):
            raise SourceError(
                f"{path}: the templates in {lang!r} are {describe(texts)}, expected a list"
            )
        for number, text in enumerate(cast(list[object], texts), 1):
            yield _Entry(f"{path} {lang} item {number}", label=None, text=text, lang=lang)


def _object(path: Path, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds {describe(value)}, expected a list or an object")
    return cast(dict[str, object], value)


def _labels_of_table(path: Path) -> Iterator[_Entry]:
    for place, values in _rows(path, LABEL_NAMES):
        names = list(values)
        label = _value(values, first_column(names, LABEL_NAMES))
        name = _value(values, first_column(names, _NAME_COLUMNS))
        lang = _value(values, first_column(names, LANG_NAMES))
        yield _Entry(place, label=label, text=label if name is None else name, lang=lang)


def _templates_of_table(path: Path) -> Iterator[_Entry]:
    for place, values in _rows(path, _TEMPLATE_COLUMNS):
        names = list(values)
        text = _value(values, first_column(names, _TEMPLATE_COLUMNS))
        lang = _value(values, first_column(names, LANG_NAMES))
        yield _Entry(place, label=None, text=text or "", lang=lang)


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, object]]]:
    names = column_names(path, TableColumns())
    if first_column(names, needed) is None:
        raise SourceError(
            f"{path} has no column {needed[0]!r}, it has {show_names(names)}; "
            "a .csv or .tsv needs a first line of names"
        )
    for row in read_rows(path, TableColumns()):
        place = f"{path} {row.where}"
        if isinstance(row, BadRow):
            raise SourceError(f"{place}: {row.reason}")
        yield place, row.values


def _value(values: Mapping[str, object], column: str | None) -> object:
    """The value, None where there is no column, null, or a blank cell."""
    value = values[column] if column is not None else None
    return None if isinstance(value, str) and not value.strip() else value
