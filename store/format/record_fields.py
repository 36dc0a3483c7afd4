"""Taking fields of a record: each is checked as it is taken, for a cache may come from a stranger.

A checksum says that a record is as somebody wrote it, not that its writer meant well. So a field that
is missing or of another type makes a damaged record, and a path that a record names leads nowhere but
into the cache.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from ...errors import DamagedCacheError
from ...formatting import one_line
from .records import decode_record

MOST = 2**53
"""Largest whole number of a record: a double holds no larger one."""

_MOST_SHOWN = 60  # characters of a wrong value

_STEP = r"(?!\.{1,2}(?:/|\Z))[^/\\\0]+"
_INNER_PATH = re.compile(rf"{_STEP}(?:/{_STEP})*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_inner_path(path: object) -> bool:
    """Say whether a path is relative and leads down only: no ``..``, no root, no backslash."""
    return isinstance(path, str) and _INNER_PATH.fullmatch(path) is not None


def read_fields(data: bytes, *, where: str) -> "Fields":
    """Return a record's fields, its checksum checked; raises as decode_record."""
    return Fields(decode_record(data, where=where), where)


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a record, or of an object in one.

    Every method raises DamagedCacheError where a field is missing or is not what it should be.
    """

    values: Mapping[str, Any]
    where: str
    """The record, for messages."""

    inside: str = ""
    """Name of the object in the record, with a dot at its end."""

    def text(self, name: str) -> str:
        """Return a text without NUL."""
        value = self._take(name)
        if not isinstance(value, str) or "\0" in value:
            self.refuse(name, "a text")
        return value

    def text_or_none(self, name: str) -> str | None:
        """Return a text, or None where it is null or missing."""
        return None if self.values.get(name) is None else self.text(name)

    def count(self, name: str, *, least: int = 0, most: int = MOST) -> int:
        """Return a whole number within limits."""
        value = self._take(name)
        if type(value) is not int or not least <= value <= most:
            self.refuse(name, f"a whole number, {least} to {most}")
        return value

    def whole(self, name: str) -> int:
        """Return a whole number of any size."""
        value = self._take(name)
        if type(value) is not int:
            self.refuse(name, "a whole number")
        return value

    def number(self, name: str, *, limit: float = math.inf) -> float:
        """Return a finite number, at most ``limit`` away from zero."""
        value = self._take(name)
        if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > limit:
            self.refuse(name, "a number")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object with names that only its reader knows."""
        value = self._take(name)
        if not isinstance(value, dict):
            self.refuse(name, "an object")
        return cast("dict[str, Any]", value)

    def fields(self, name: str) -> "Fields":
        """Return an object, whose fields are checked likewise."""
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
        """Return the files that a record names, by path, each path within the cache."""
        found = self.mapping(name)
        for path, described in found.items():
            self._check_path(path)
            if not isinstance(described, dict):
                self.refuse(name, "an object for each file")
            file = Fields(cast("dict[str, Any]", described), self.where, f"{path}.")
            file.count("num_bytes")
            if _SHA256.fullmatch(file.text("sha256")) is None:
                file.refuse("sha256", "64 hexadecimal digits")
        return found

    def staged(self, name: str, files: Mapping[str, Any]) -> dict[str, str]:
        """Return, for each of the files, the partial that waits to get its name."""
        found = self.mapping(name)
        if found.keys() != files.keys():
            self.refuse(name, "the files of the record")
        for path, partial in found.items():
            self._check_path(partial)
            if not (partial.startswith(f"{path}.") and partial.endswith(".partial")):
                self.refuse(name, "partial files beside those of the record")
        return cast("dict[str, str]", found)

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise the error that says what a field should be."""
        value = one_line(repr(self.values.get(name)))
        shown = value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}..."
        raise DamagedCacheError(
            f"{self.where} has {self._place(name)} {shown}, expected {expected}"
        )

    def _take(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise DamagedCacheError(f"{self.where} has no {self._place(name)}") from None

    def _place(self, name: str) -> str:
        return one_line(f"{self.inside}{name}"[:_MOST_SHOWN])

    def _check_path(self, path: object) -> None:
        if not is_inner_path(path):
            shown = one_line(repr(path))[:_MOST_SHOWN]
            raise DamagedCacheError(
                f"{self.where} names {shown}, which leads out of the cache; it was not written by "
                "siglip2-cache, do not use it"
            )
