"""Finding the positions of texts in the file from which they were read."""

import json
from typing import BinaryIO

from ..listing import open_path

_CHUNK_BYTES = 1 << 20
_MAX_FAILURES = 3
"""Texts searched through the whole file; more would take quadratic time."""


class TextSpans:
    """Finds ASCII texts in a file, in their order in the file, which is read once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._buffer, self._start = b"", 0  # bytes in memory, and their position in the file
        self._num_failures = 0

    def find(self, text: str) -> tuple[int, int]:
        """Return offset and length of a text after the last one that was found.

        Raises:
            ValueError: it was not found as it was read; the message is a reason.
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
        """Move to the end of the next needle and return True; without one, stay and return False."""
        if self._file is None:
            self._file = open_path(self._path)
        buffer, start = self._buffer, self._start
        while (at := buffer.find(needle)) < 0:
            num_skipped = max(0, len(buffer) - len(needle) + 1)
            start += num_skipped
            chunk = self._file.read(_CHUNK_BYTES)
            if not chunk:
                self._file.seek(self._start + len(self._buffer))
                return False
            buffer = buffer[num_skipped:] + chunk
        end = at + len(needle)
        self._buffer, self._start = buffer[end:], start + end
        return True
