"""Reading the files of a user that make prompts: a labels file and a templates file.

Both are short and written by hand, so the first error in one is reported with its line.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ...errors import SettingError, SourceError
from ...store.cache import Cache
from ..sources.fields.captions import clean_name, clean_text
from ..sources.fields.columns import LABEL_NAMES, LANG_NAMES, TableColumns, first_column, show_names
from ..sources.readers.table_rows import BadRow, column_names, read_rows
from ..sources.text import is_unicode, name_type, parse_json
from .config import PlanConfig
from .prompts import Label, Prompt, Template, make_prompts, number_labels

_ACCEPTED = ".txt, .json, .csv, .tsv or .jsonl"
_NAME_COLUMNS = ("name", "names")
_TEMPLATE_COLUMNS = ("template", "templates", "prompt", "text")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line, row or item of a file, before it becomes a label or a template."""

    place: str
    label: object
    text: object
    lang: object = None


def fingerprint_prompts(config: PlanConfig, cache: Cache | None) -> str:
    """Return a hash of the labels and templates files; without them, the hash recorded in the cache."""
    if config.templates is None:
        return cache.manifest.latest.prompts_fingerprint if cache else ""
    digest = hashlib.sha256()
    for path in (config.labels, config.templates):
        digest.update(b"\0" if path is None else _read_setting_file(path))
    return digest.hexdigest()


def _read_setting_file(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None


def read_prompts(config: PlanConfig) -> Callable[[list[str]], tuple[Iterable[Prompt], str]]:
    """Read the labels and templates files, and return a function that makes prompts for a corpus.

    It takes the labels of the corpus and returns the prompts, and a note if those labels were taken as
    numbers of classes.

    Raises:
        SourceError: a file cannot be read, or a line of it is no label or template.
    """
    if config.templates is None:
        return lambda corpus_labels: ((), "")
    templates = read_templates(config.templates)
    labels = None if config.labels is None else read_labels(config.labels)

    def prompts(corpus_labels: list[str]) -> tuple[Iterable[Prompt], str]:
        if labels is None and not corpus_labels:
            raise SettingError(
                f"templates {config.templates} were given, but the corpus has no labels; "
                "give class names with --labels FILE"
            )
        if labels is None:
            own = [Label(label=name, name=name) for name in corpus_labels]
            return make_prompts(own, templates), ""
        numbered = number_labels(labels, corpus_labels)
        note = ""
        if numbered is labels:
            refuse_repeats(labels)
        else:
            note = (
                f"the corpus numbers the classes of {config.labels} from 0: 0 is {labels[0].name[:40]!r}, "
                f"{len({x.label for x in numbered}) - 1:,} is {labels[-1].name[:40]!r}"
            )
        return make_prompts(numbered, templates), note

    return prompts


def read_labels(path: str | Path) -> list[Label]:
    """Read the names of the classes, in the order of the file.

    A .txt has one class a line. A .json is a list of names; an object of parallel lists by language, where
    the first list also names the classes; or an object by class, of names by language (or of one name).
    Other tables have the columns label, name (default: the label) and lang. A plain list, without labels and
    languages, may repeat a name.

    Raises:
        SourceError: the file is empty or malformed, or two lines name one class in one language.
    """
    path = Path(path)
    labels = [_label(entry) for entry in _entries(path, _labels_of_json, _labels_of_table)]
    if any(label.label != label.name or label.lang is not None for label in labels):
        refuse_repeats(labels)
    return labels


def refuse_repeats(labels: Iterable[Label]) -> None:
    """Check that each class has one name in a language, where labels are matched by their text.

    Raises:
        SourceError: two lines name one class in one language.
    """
    _refuse_duplicates("label", ((label.label, label.lang, label.place) for label in labels))


def read_templates(path: str | Path) -> list[Template]:
    """Read the templates, in the order of the file.

    A .txt has one a line. A .json is a list, or an object of lists by language. Other tables have the
    columns template and lang.

    Raises:
        SourceError: the file is empty or malformed, a template has no ``{}`` or several, or two lines are
            equal: a class's mean would count it twice.
    """
    path = Path(path)
    entries = _entries(path, _templates_of_json, _templates_of_table)
    templates = [_template(entry) for entry in entries]
    _refuse_duplicates("template", ((each.text, each.lang, each.place) for each in templates))
    return templates


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
            f"{entry.place}: template {text!r} has {{}} {num_holes} times; "
            "expected once, for the name of the class"
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
            in_language = f" in {lang}" if lang is not None else ""
            raise SourceError(f"{what} {text!r}{in_language} is there twice: {first} and {place}")


def _entries(
    path: Path,
    of_json: Callable[[Path, object], Iterator[_Entry]],
    of_table: Callable[[Path], Iterator[_Entry]],
) -> list[_Entry]:
    if not path.is_file():
        raise SourceError(f"there is no file {path}; expected a file ending in {_ACCEPTED}")
    match path.suffix.lower():
        case ".txt":
            entries = list(_lines(path))
        case ".json":
            entries = list(of_json(path, _load_json(path)))
        case ".csv" | ".tsv" | ".jsonl":
            entries = list(of_table(path))
        case _:
            raise SourceError(f"{path} is not a supported kind of file; expected {_ACCEPTED}")
    if not entries:
        raise SourceError(f"{path} is empty; expected at least one line")
    return entries


def _lines(path: Path) -> Iterator[_Entry]:
    # universal newlines; splitlines() would also split at U+2028 and similar characters
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
    if doubled:  # JSON readers silently keep the last one
        raise SourceError(f"{path}: the name {doubled[0]!r} is there twice in one object")
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
                f"{path}: the templates in {lang!r} are {name_type(texts)}, expected a list"
            )
        for number, text in enumerate(cast(list[object], texts), 1):
            yield _Entry(f"{path} {lang} item {number}", label=None, text=text, lang=lang)


def _object(path: Path, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds {name_type(value)}, expected a list or an object")
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
    """Return the value; None if there is no column, or the cell is null or blank."""
    value = values[column] if column is not None else None
    return None if isinstance(value, str) and not value.strip() else value
