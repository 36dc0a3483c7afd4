"""The records of img2dataset about its downloads, beside images in any of its formats.

Beside a shard NNNNN (a tar, a folder, or the Parquet file itself) are NNNNN.parquet, with a row for each
link and its status, and NNNNN_stats.json, which is written last: without it the shard is not finished.
Source: img2dataset 1.47, writer.py, downloader.py, logger.py.
"""

# pyarrow has no types, so that everything it returns is unknown to a strict checker.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from upath import UPath

from ...store.io.location import Location
from ...store.io.range_file import RangeFile
from .listing import as_location, is_remote, list_names, printable, size_and_time
from .readers.parquet_rows import open_parquet, row_group_rows
from .samples import Problem
from .text import is_unicode

STATUS_COLUMNS = ("status", "error_message")
HASH_COLUMN = "sha256"
"""Hash of the download, 64 hexadecimal digits; null if img2dataset did not compute it."""

_STATS = re.compile(r"(\d+)_stats\.json")
_RECORDS = re.compile(r"(\d+)\.parquet")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_WHAT = {"failed_to_download": "not downloaded", "failed_to_resize": "not decoded or resized"}
_MAX_REASONS = 20  # different ones that one shard's problems name
_MAX_REASON = 200  # characters of one


class Downloads:
    """Counts the rows of one shard that hold no image, by reason."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._failed: Counter[str] = Counter()

    def add(self, values: Mapping[str, object]) -> bool:
        """Count a row; return whether it holds an image."""
        self._num_rows += 1
        status = values.get("status")
        if status == "success":
            return True
        what = _WHAT.get(str(status), f"of status {str(status)[:40]!r}")
        message = values.get("error_message")
        why = " ".join(message.split())[:_MAX_REASON] if isinstance(message, str) else ""
        self._failed[f"{what}: {why if why and is_unicode(why) else 'no reason given'}"] += 1
        return False

    def problems(self, place: str) -> Iterator[Problem]:
        """Yield a problem for each reason, the most frequent first."""
        common = self._failed.most_common()
        for reason, count in common[:_MAX_REASONS]:
            yield Problem(place=place, reason=f"{count:,} of {self._num_rows:,} rows were {reason}")
        others = common[_MAX_REASONS:]
        if others:
            rest = sum(count for _, count in others)
            reason = f"{rest:,} of {self._num_rows:,} rows failed for {len(others):,} other reasons"
            yield Problem(place=place, reason=reason)


def source_sha256(values: Mapping[str, object]) -> bytes | None:
    """Return the hash of the download, if the row has one."""
    written = values.get(HASH_COLUMN)
    is_hash = isinstance(written, str) and _SHA256.fullmatch(written)
    return bytes.fromhex(written) if is_hash and isinstance(written, str) else None


@dataclass(frozen=True, slots=True)
class ShardRecords:
    """The records beside one shard."""

    stem: str
    """Path of the shard without its ending."""

    has_records: bool
    unfinished: str | None
    """Why the shard is not finished, with the remedy; None if it is finished."""

    def fingerprint(self) -> str:
        """Return a text that changes with the records."""
        records = size_and_time(f"{self.stem}.parquet") if self.has_records else None
        return f"{records} {self.unfinished is None}"

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for each reason why links of a finished shard gave no image."""
        if self.has_records:
            yield from _failures(as_location(f"{self.stem}.parquet"))

    def skipped(self, place: str) -> Problem:
        """Return the problem of an unfinished shard."""
        reason = f"img2dataset has not finished it, skipped ({self.unfinished})"
        return Problem(place=printable(place), reason=reason)


class RecordedFolder:
    """The records of img2dataset in one folder."""

    def __init__(self, folder: str) -> None:
        """Describe the records in the folder of the shards, which is listed once, on first use."""
        self._folder = folder

    @cached_property
    def _names(self) -> tuple[set[str], set[str]]:
        """Names of shards with stats, and of shards with records."""
        finished, recorded = set[str](), set[str]()
        try:
            names = list_names(self._folder)
        except OSError:
            return finished, recorded
        for name in names:
            if found := _STATS.fullmatch(name):
                finished.add(found[1])
            elif found := _RECORDS.fullmatch(name):
                recorded.add(found[1])
        return finished, recorded

    def find_records(self, name: str) -> ShardRecords | None:
        """Return the records of a shard, named without ending; None if img2dataset did not write it.

        Many corpora are published without the stats. If no shard has them, shards with complete records count
        as finished, because records are closed after the last download.
        """
        if not name.isdecimal():
            return None
        finished, recorded = self._names
        stem = f"{self._folder}/{name}"
        is_recorded = name in recorded
        if not (is_recorded or finished):
            return None
        unfinished = None
        if finished and name not in finished:
            unfinished = (
                f"there is no {name}_stats.json; run img2dataset again, or, if the shard is whole: "
                f"touch {shlex.quote(f'{stem}_stats.json')}"
            )
        elif not finished and not _is_whole_parquet(f"{stem}.parquet"):
            unfinished = (
                f"{name}.parquet is cut; run img2dataset again, or, if the shard is whole: "
                f"rm {shlex.quote(f'{stem}.parquet')}"
            )
        return ShardRecords(stem, is_recorded, unfinished)

    def find_parquet_records(self, name: str) -> ShardRecords | None:
        """Return the records of a shard that is a Parquet file with the images inside, or None.

        Without any stats beside it, it is a file of another program.
        """
        return self.find_records(name) if name.isdecimal() and self._names[0] else None

    def belongs_to(self, shards: Collection[str]) -> bool:
        """Return whether img2dataset wrote these shards."""
        finished, recorded = self._names
        if finished:
            return any(name in finished for name in shards)
        return bool(shards) and all(name in recorded for name in shards)


def _is_whole_parquet(path: str) -> bool:
    """Return whether a file ends as a Parquet file does, so that it was written completely."""
    try:
        if is_remote(path):
            with RangeFile(cast(UPath, as_location(path))) as file:
                file.seek(-4, os.SEEK_END)
                return file.read(4) == b"PAR1"
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            return file.read() == b"PAR1"
    except OSError:
        return False


def _failures(records: Location) -> Iterator[Problem]:
    """Yield why links of a shard gave no image, each reason once, the most frequent first."""
    place = printable(str(records))
    downloads = Downloads()
    try:
        with open_parquet(records) as file:
            columns = [name for name in STATUS_COLUMNS if name in file.schema_arrow.names]
            if "status" not in columns:  # another table with the name of the shard
                return
            for group in range(file.metadata.num_row_groups):
                for values in row_group_rows(file, group, columns):
                    downloads.add({} if isinstance(values, str) else values)
    except ValueError as error:
        reason = str(error).removeprefix(str(records)).strip()
        yield Problem(place=place, reason=f"the record of its downloads cannot be read ({reason})")
        return
    yield from downloads.problems(place)
