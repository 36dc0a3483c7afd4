"""Where in a file texts stand that were read from it, one after the other."""

import json
from typing import BinaryIO

from ..listing import open_path

_CHUNK_BYTES = 1 << 20
_MAX_FAILURES = 3
"""Texts looked for through the whole file: more would take time that grows with its square."""


class TextSpans:
    """Finds ASCII texts in a file, in the order in which they stand there; reads it once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._buffer, self._start = b"", 0  # bytes at hand, and where in the file they begin
        self._num_failures = 0

    def find(self, text: str) -> tuple[int, int]:
        """Return offset and length of a text behind the last one that was found.

        Raises:
            ValueError: it is not there as it was read; the message is a reason.
        """
        in_json = json.dumps(text)[1:-1]
        for form in dict.fromkeys((text, in_json, in_json.replace("/", "\\/"))):
            needle = form.encode("ascii", "replace")
            if self._num_failures < _MAX_FAILURES and self._read_to(needle):
                return self._start - len(needle), len(needle)
        self._num_failures += 1
        raise ValueError("its base64 text was not found in the table; save the table as UTF-8")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _read_to(self, needle: bytes) -> bool:
        """Go on behind a needle; where there is none, stay."""
        if self._file is None:
            self._file = open_path(self._path)
        buffer, start = self._buffer, self._start
        while (at := buffer.find(needle)) < 0:
            num_passed = max(0, len(buffer) - len(needle) + 1)
            start += num_passed
            chunk = self._file.read(_CHUNK_BYTES)
            if not chunk:
                self._file.seek(self._start + len(self._buffer))
                return False
            buffer = buffer[num_passed:] + chunk
        end = at + len(needle)
        self._buffer, self._start = buffer[end:], start + end
        return True
