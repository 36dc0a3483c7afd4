"""What a row of any table says of its image: key, label, captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..samples import Caption
from .caption_lists import read_written
from .captions import caption_fields, clean_captions, clean_name
from .columns import FoundColumns


@dataclass(frozen=True, slots=True)
class RowFields:
    """One row, made clean."""

    key: str | None
    """None where the row has none."""

    label: str | None
    captions: tuple[Caption, ...]
    reasons: tuple[str, ...]
    """Why other values are no use; the sample stays."""


def read_fields(
    values: Mapping[str, object],
    found: FoundColumns,
    *,
    class_names: Sequence[str] = (),
) -> RowFields:
    """Return what a row says.

    Args:
        values: the row's values by column name.
        found: the meaning of its columns.
        class_names: names of the classes, where labels are their numbers.

    Raises:
        ValueError: its key is no name; the message is a reason.
    """
    key = clean_name(values[found.key], "the key") if found.key is not None else None
    label, reasons = None, list[str]()
    if found.label is not None:
        try:
            label = clean_name(_class_name(values[found.label], class_names), "the label")
        except ValueError as error:
            reasons.append(str(error))
    captions, unusable = clean_captions(
        caption_fields(values, found.captions),
        read_written(values[found.lang]) if found.lang is not None else None,
    )
    return RowFields(key, label, captions, (*reasons, *unusable))


def _class_name(value: object, names: Sequence[str]) -> object:
    """Return the name of a class where its number stands; -1 is a row without class."""
    if not names or not isinstance(value, int) or isinstance(value, bool) or value == -1:
        return None if names and value == -1 else value
    if not 0 <= value < len(names):
        raise ValueError(f"the label is {value}, but there are {len(names)} classes")
    return names[value]
