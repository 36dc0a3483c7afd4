"""Fields of a record, each checked when it is read: a cache may come from an untrusted source.

A checksum proves that a record is unchanged, not that it is harmless. So a missing field or one of
another type makes a record damaged, and no path in a record may lead out of the cache.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from ...errors import DamagedCacheError
from ...formatting import one_line
from ..io.storage import Storage
from .records import decode_record

MAX_INTEGER = 2**53
"""Largest integer of a record: doubles cannot represent all larger ones."""

_MAX_SHOWN = 60  # characters of an invalid value

_STEP = r"(?!\.{1,2}(?:/|\Z))[^/\\\0]+"
_INNER_PATH = re.compile(rf"{_STEP}(?:/{_STEP})*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_inner_path(path: object) -> bool:
    """Return whether a path is relative and stays inside: no ``..``, no root, no backslash."""
    return isinstance(path, str) and _INNER_PATH.fullmatch(path) is not None


def read_fields(data: bytes, *, where: str) -> "Fields":
    """Return the fields of a record, whose checksum is checked; raises as decode_record does."""
    return Fields(decode_record(data, where=where), where)


def read_record(files: Storage, path: str) -> "Fields | None":
    """Return the fields of a record of the catalog or a teacher, or None if it does not exist.

    Raises:
        FormatVersionError, DamagedCacheError: the record cannot be read.
    """
    try:
        data = files.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return read_fields(data, where=files.where(path))
    except DamagedCacheError as error:
        raise DamagedCacheError(f"{error}; restore it from a backup, or build anew") from None


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a record, or of an object in a record.

    Every method raises DamagedCacheError if the field is missing or invalid.
    """

    values: Mapping[str, Any]
    where: str
    """The record, for messages."""

    inside: str = ""
    """Name of the object in the record, with a trailing dot."""

    def text(self, name: str) -> str:
        """Return a text without NUL."""
        value = self._take(name)
        if not isinstance(value, str) or "\0" in value:
            self.refuse(name, "a text")
        return value

    def text_or_none(self, name: str) -> str | None:
        """Return a text, or None if the field is null or missing."""
        return None if self.values.get(name) is None else self.text(name)

    def count(self, name: str, *, least: int = 0, most: int = MAX_INTEGER) -> int:
        """Return an integer within limits."""
        value = self._take(name)
        if type(value) is not int or not least <= value <= most:
            self.refuse(name, f"an integer, {least} to {most}")
        return value

    def whole(self, name: str) -> int:
        """Return an integer of any size."""
        value = self._take(name)
        if type(value) is not int:
            self.refuse(name, "an integer")
        return value

    def number(self, name: str, *, limit: float = math.inf) -> float:
        """Return a finite number whose absolute value is at most ``limit``."""
        value = self._take(name)
        if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > limit:
            self.refuse(name, "a number")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object whose names are not checked."""
        value = self._take(name)
        if not isinstance(value, dict):
            self.refuse(name, "an object")
        return cast("dict[str, Any]", value)

    def fields(self, name: str) -> "Fields":
        """Return an object whose fields are checked when they are read."""
        return Fields(self.mapping(name), self.where, f"{self.inside}{name}.")

    def entries(self, name: str) -> list["Fields"]:
        """Return a list of objects."""
        value = self._take(name)
        if not isinstance(value, list):
            self.refuse(name, "a list")
        values = cast("list[object]", value)
        if not all(isinstance(each, dict) for each in values):
            self.refuse(name, "a list of objects")
        found = cast("list[dict[str, Any]]", values)
        return [Fields(each, self.where, f"{self.inside}{name}.") for each in found]

    def files(self, name: str = "files") -> dict[str, dict[str, Any]]:
        """Return the descriptions of the files of a record by path; every path is checked."""
        found = self.mapping(name)
        for path, description in found.items():
            self._check_path(path)
            if not isinstance(description, dict):
                self.refuse(name, "an object for each file")
            file = Fields(cast("dict[str, Any]", description), self.where, f"{path}.")
            file.count("num_bytes")
            if _SHA256.fullmatch(file.text("sha256")) is None:
                file.refuse("sha256", "64 hexadecimal digits")
        return found

    def staged(self, name: str, files: Mapping[str, Any]) -> dict[str, str]:
        """Return the path of the staged partial file of each of the files."""
        found = self.mapping(name)
        if found.keys() != files.keys():
            self.refuse(name, "the files of the record")
        for path, partial in found.items():
            self._check_path(partial)
            if not (partial.startswith(f"{path}.") and partial.endswith(".partial")):
                self.refuse(name, "partial files beside the files of the record")
        return cast("dict[str, str]", found)

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise the error for an invalid field, with what was expected."""
        value = one_line(repr(self.values.get(name)))
        shown = value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}..."
        raise DamagedCacheError(
            f"{self.where} has {self._place(name)} {shown}, expected {expected}"
        )

    def _take(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise DamagedCacheError(f"{self.where} has no {self._place(name)}") from None

    def _place(self, name: str) -> str:
        return one_line(f"{self.inside}{name}"[:_MAX_SHOWN])

    def _check_path(self, path: object) -> None:
        if not is_inner_path(path):
            shown = one_line(repr(path))[:_MAX_SHOWN]
            raise DamagedCacheError(
                f"{self.where} names {shown}, which leads out of the cache; siglip2-cache did not write "
                "it, do not use it"
            )
