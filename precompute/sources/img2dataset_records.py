"""What img2dataset recorded of its downloads, in whatever format it wrote the images.

A shard NNNNN (a tar, a folder, or the Parquet file itself) has beside it NNNNN.parquet, a row for each
link of the shard with what became of it, and NNNNN_stats.json, which is written last: a shard without
it is not finished.
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
"""Of the download, in 64 hexadecimal digits; null where img2dataset was not to compute it."""

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
    """Return the hash of what was downloaded, where the row says it."""
    written = values.get(HASH_COLUMN)
    is_hash = isinstance(written, str) and _SHA256.fullmatch(written)
    return bytes.fromhex(written) if is_hash and isinstance(written, str) else None


@dataclass(frozen=True, slots=True)
class ShardRecords:
    """What stands beside one shard."""

    stem: str
    """Path of the shard without its ending."""

    has_records: bool
    unfinished: str | None
    """Why the shard is not finished and what mends that; None where it is."""

    def fingerprint(self) -> str:
        """Return a text that changes with the records."""
        records = size_and_time(f"{self.stem}.parquet") if self.has_records else None
        return f"{records} {self.unfinished is None}"

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for each reason why links of a finished shard gave no image."""
        if self.has_records:
            yield from _failures(as_location(f"{self.stem}.parquet"))

    def skipped(self, place: str) -> Problem:
        """Return the problem that an unfinished shard is."""
        reason = f"img2dataset has not finished it, skipped ({self.unfinished})"
        return Problem(place=printable(place), reason=reason)


class RecordedFolder:
    """The records that img2dataset left in one folder."""

    def __init__(self, folder: str) -> None:
        """Args:
        folder: of the shards; listed once, when a shard is asked for that is named like one.
        """
        self._folder = folder

    @cached_property
    def _names(self) -> tuple[set[str], set[str]]:
        """Shards that have stats, and those that have records."""
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

    def of_shard(self, name: str) -> ShardRecords | None:
        """Return what stands beside a shard, named without ending; None where img2dataset wrote nothing.

        Many corpora are handed on without the stats: where no shard has them, those count as finished
        whose records are whole. These are closed when the last link has been tried.
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

    def of_images(self, name: str) -> ShardRecords | None:
        """Return what stands beside a shard that is a Parquet file with the images in it; None where
        img2dataset recorded nothing. Without any stats it is a file as other programs write it."""
        return self.of_shard(name) if name.isdecimal() and self._names[0] else None

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
    """Yield why rows of a shard's records gave no image, each reason once, the commonest first."""
    place = printable(str(records))
    downloads = Downloads()
    try:
        with open_parquet(records) as file:
            columns = [name for name in STATUS_COLUMNS if name in file.schema_arrow.names]
            if "status" not in columns:  # some other table that is named like the shard
                return
            for group in range(file.metadata.num_row_groups):
                for values in row_group_rows(file, group, columns):
                    downloads.add({} if isinstance(values, str) else values)
    except ValueError as error:
        reason = str(error).removeprefix(str(records)).strip()
        yield Problem(place=place, reason=f"the record of its downloads cannot be read ({reason})")
        return
    yield from downloads.problems(place)
