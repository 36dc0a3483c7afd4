"""The key, label and captions in a row of any table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..samples import Caption
from .caption_lists import read_written
from .captions import caption_fields, clean_captions, clean_name
from .columns import FoundColumns


@dataclass(frozen=True, slots=True)
class RowFields:
    """The cleaned values of one row."""

    key: str | None
    """None if the row has none."""

    label: str | None
    captions: tuple[Caption, ...]
    reasons: tuple[str, ...]
    """Why other values cannot be used; the sample remains."""


def read_fields(
    values: Mapping[str, object],
    found: FoundColumns,
    *,
    class_names: Sequence[str] = (),
) -> RowFields:
    """Return the key, label and captions of a row.

    Args:
        values: the row's values by column name.
        found: the meaning of its columns.
        class_names: names of the classes, if labels are numbers.

    Raises:
        ValueError: its key is invalid; the message is a reason.
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
        *(
            None if name is None else read_written(values[name])
            for name in (found.lang, found.kind)
        ),
    )
    return RowFields(key, label, captions, (*reasons, *unusable))


def _class_name(value: object, names: Sequence[str]) -> object:
    """Return the name of a class for its number; None for -1, which means no class."""
    if not names or not isinstance(value, int) or isinstance(value, bool) or value == -1:
        return None if names and value == -1 else value
    if not 0 <= value < len(names):
        raise ValueError(f"the label is {value}, but there are {len(names)} classes")
    return names[value]
