"""What the footer of a Parquet file says of a column, asked in a process of its own.

pyarrow 26 reads values with care, but ends its process where a damaged footer contradicts itself and
one asks for the metadata of a column: nothing catches what C++ throws there. So another process asks.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from typing import Any

_MAGIC = b"PAR1"
_TAIL_BYTES = 8  # length of the footer, magic

NullCounts = list[int | None]
"""Of each row group: cells without a value; None where the file does not say."""


class Footers:
    """Asks about one file after the other; the process starts with the first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()  # pieces of a corpus may be scanned in several threads

    def null_counts(self, path: str, member: str, num_row_groups: int) -> NullCounts:
        """Return the null counts of a column, named by the path that leads to it; None for each row
        group where the footer is damaged, which reading then says.

        Raises:
            StorageError: the file lies in a store that does not answer.
        """
        try:
            with _local_file(path) as local, self._turn:
                answer = self._ask({"path": local, "member": member})
        except (OSError, ValueError):  # it died, before or after it took the question
            self.close()
            return [None] * num_row_groups
        return answer if len(answer) == num_row_groups else [None] * num_row_groups

    def close(self) -> None:
        """End the process, if there is one; the next question starts another."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin and process.stdout
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait()
            process.stdout.close()

    def _ask(self, question: dict[str, str]) -> NullCounts:
        if self._process is None:
            self._process = _start()
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def _local_file(path: str) -> Generator[str]:
    """Give a file of this machine with the footer of a Parquet file, of an object nothing but that."""
    if "://" not in path:
        yield path
        return
    from ....store.io.range_file import (
        open_ranges,  # here: where this file is run it has no package
    )
    from ..listing import as_location

    with (
        tempfile.NamedTemporaryFile(suffix=".parquet") as file,
        open_ranges(as_location(path)) as remote,
    ):
        remote.seek(-_TAIL_BYTES, os.SEEK_END)
        tail = remote.read(_TAIL_BYTES)
        remote.seek(-_TAIL_BYTES - int.from_bytes(tail[:4], "little"), os.SEEK_END)
        file.write(_MAGIC + remote.read())
        file.flush()
        yield file.name


def _start() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, __file__],  # by -m it would import all that its package does
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # as it ends, a word on the exception
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


FOOTERS = Footers()
atexit.register(FOOTERS.close)


def _answer(question: dict[str, Any]) -> NullCounts:
    import pyarrow.parquet as pq

    with pq.ParquetFile(question["path"]) as file:
        metadata: Any = file.metadata
        names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
        if question["member"] not in names:
            return [None] * metadata.num_row_groups
        at = names.index(question["member"])
        columns = [metadata.row_group(g).column(at) for g in range(metadata.num_row_groups)]
        found = [column.statistics for column in columns]
    return [s.null_count if s is not None and s.has_null_count else None for s in found]


def main() -> None:
    """Answer questions, a line of JSON each, until there are no more."""
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line))
        except Exception:  # pyarrow's, of a file that is gone or cannot be read
            answer = []
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
