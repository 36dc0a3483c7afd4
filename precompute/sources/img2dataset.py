"""What img2dataset writes: records beside its shards, and its format "files".

A shard NNNNN (a tar, a folder) has beside it NNNNN.parquet, a row for each link of the shard with what
became of it, and NNNNN_stats.json, which is written last: a shard without it is not finished.
Source: img2dataset 1.47, writer.py, downloader.py, logger.py.
"""

# pyarrow has no types, so that everything it returns is unknown to a strict checker.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import SourceError
from .base import Piece, Problem, Sample
from .caption_files import read_bytes
from .captions import is_unicode
from .described import DESCRIBING, describe_image
from .folder import IMAGE_ENDINGS
from .paths import printable, size_and_time
from .tally import Tally

_STATS = re.compile(r"(\d+)_stats\.json")
_RECORDS = re.compile(r"(\d+)\.parquet")
_SHARD_FOLDER = re.compile(r"\d+")  # as many digits as img2dataset is told, 5 if not
_FAILURES = {"failed_to_download": "not downloaded", "failed_to_resize": "not decoded or resized"}
_MAX_REASONS = 20  # different ones that one shard's problems name
_MAX_REASON = 200  # characters of one


@dataclass(frozen=True, slots=True)
class ShardRecords:
    """What stands beside one shard."""

    stem: str
    """Path of the shard without its ending."""

    has_records: bool
    unfinished: str | None
    """Why the shard is not finished and what mends that; None where it is."""

    def fingerprint(self) -> str:
        """Changes with the records."""
        records = size_and_time(f"{self.stem}.parquet") if self.has_records else None
        return f"{records} {self.unfinished is None}"

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for each reason why links of a finished shard gave no image."""
        if self.has_records:
            yield from _failures(f"{self.stem}.parquet")

    def skipped(self, place: str) -> Problem:
        """Return the problem that an unfinished shard is."""
        reason = f"img2dataset has not finished it, skipped ({self.unfinished})"
        return Problem(place=printable(place), reason=reason)


class RecordedFolder:
    """The records that img2dataset left in one folder."""

    def __init__(self, folder: str) -> None:
        """Args:
        folder: of the shards; listed once.
        """
        self._folder = folder
        self._finished: set[str] = set()
        self._recorded: set[str] = set()
        try:
            names = os.listdir(folder)
        except OSError:
            return
        for name in names:
            if found := _STATS.fullmatch(name):
                self._finished.add(found[1])
            elif found := _RECORDS.fullmatch(name):
                self._recorded.add(found[1])

    def of_shard(self, name: str) -> ShardRecords | None:
        """Return what stands beside a shard, named without ending; None where img2dataset wrote nothing.

        Many corpora are handed on without the stats: where no shard has them, those count as finished
        whose records are whole. These are closed when the last link has been tried.
        """
        stem = f"{self._folder}/{name}"
        is_recorded = name in self._recorded
        if not name.isdecimal() or not (is_recorded or self._finished):
            return None
        unfinished = None
        if self._finished and name not in self._finished:
            unfinished = (
                f"there is no {name}_stats.json; run img2dataset again, or, if the shard is whole: "
                f"touch {shlex.quote(f'{stem}_stats.json')}"
            )
        elif not self._finished and not _is_whole_parquet(f"{stem}.parquet"):
            unfinished = (
                f"{name}.parquet is cut; run img2dataset again, or, if the shard is whole: "
                f"rm {shlex.quote(f'{stem}.parquet')}"
            )
        return ShardRecords(stem, is_recorded, unfinished)

    def belongs_to(self, shards: Collection[str]) -> bool:
        """Say whether it was img2dataset that wrote these shards."""
        if self._finished:
            return any(name in self._finished for name in shards)
        return bool(shards) and all(name in self._recorded for name in shards)


@dataclass(frozen=True, slots=True)
class Img2datasetFiles:
    """A folder that img2dataset wrote in its format "files": a sub-folder for each shard."""

    location: Path
    """The folder, absolute."""

    @property
    def kind(self) -> str:
        return "img2dataset"

    @property
    def root(self) -> Path:
        return self.location

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing can be set."""
        return {}

    def fingerprint(self) -> str:
        """Changes with the name, size or time of any file of a shard; opens none."""
        facts = "".join(f"{piece.name} {piece.fingerprint}\n" for piece in self.pieces())
        return hashlib.sha256(os.fsencode(f"img2dataset\n{facts}")).hexdigest()

    def pieces(self) -> Iterator[Piece]:
        """Yield one piece a shard, by name.

        Raises:
            SourceError: the folder cannot be read.
        """
        recorded = RecordedFolder(str(self.root))
        shards, others = _folders(str(self.root))
        if others:
            yield Piece("", partial(unread_folders, self.root, others))
        for name in shards:
            records = recorded.of_shard(name)
            told = records.fingerprint() if records else "none"
            state = f"{told} {_digest(f'{self.root}/{name}')}"
            yield Piece(name, partial(self._scan, name, records), state)

    def _scan(self, name: str, records: ShardRecords | None) -> Iterator[Sample | Problem]:
        folder = f"{self.root}/{name}"
        if records is not None and records.unfinished is not None:
            yield records.skipped(folder)
            return
        try:
            file_names = _list_shard(folder)
        except PermissionError as error:
            reason = f"the folder cannot be read ({error.strerror})"
            yield Problem(place=printable(folder), reason=reason)
            return
        tally = Tally(printable(folder))
        by_key: dict[str, list[str]] = {}
        for file_name in file_names:
            key, _ = os.path.splitext(file_name)
            by_key.setdefault(key, []).append(file_name)
        for key, names in by_key.items():
            yield from self._sample(name, key, names, tally)
        yield from tally.rest()
        if records is not None:
            yield from records.problems()

    def _sample(
        self, shard: str, key: str, names: list[str], tally: Tally
    ) -> Iterator[Sample | Problem]:
        folder = f"{self.root}/{shard}"
        files = {os.path.splitext(name)[1].lower(): f"{folder}/{name}" for name in names}
        image = next((files[ending] for ending in IMAGE_ENDINGS if ending in files), None)
        texts = {ending: files[f".{ending}"] for ending in DESCRIBING if f".{ending}" in files}
        if image is None and not texts:
            return
        place = printable(image or next(iter(texts.values())))
        if not is_unicode(key):
            reason = "the file name is not UTF-8; rename it"
            yield from tally.add(reason, Problem(place=place, reason=reason))
            return
        if image is None:
            reason = "there is no image to it"
            yield from tally.add(reason, Problem(place=place, reason=reason, key=key))
            return
        told = describe_image({ending: partial(read_bytes, path) for ending, path in texts.items()})
        num_bytes, mtime_ns = size_and_time(image)
        yield Sample(
            key=key,
            path=f"{shard}/{os.path.basename(image)}",
            captions=told.captions,
            label=told.label,
            source_sha256=told.source_sha256,
            num_bytes=num_bytes,
            mtime_ns=mtime_ns,
            place=place,
        )
        for ending, reason in told.reasons:
            problem = Problem(place=printable(texts[ending]), reason=reason, key=key)
            yield from tally.add(f"its .{ending} is no use, or part of it", problem)


def find_img2dataset_files(folder: Path) -> Img2datasetFiles | None:
    """Return the source that a folder is, where img2dataset wrote it in its format "files".

    That is: sub-folders of digits with img2dataset's records beside them.
    """
    shards, _ = _folders(str(folder))
    return Img2datasetFiles(folder) if RecordedFolder(str(folder)).belongs_to(shards) else None


def unread_folders(root: Path, names: Sequence[str]) -> Iterator[Problem]:
    """Yield the problem that sub-folders of a folder of shards are: nothing in them is read."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    yield Problem(
        place=printable(str(root)),
        reason=f"its sub-folders {', '.join(map(printable, names[:3]))}{more} are not read, for shards "
        "lie beside them; name what is in them as a source of its own",
    )


def _folders(root: str) -> tuple[list[str], list[str]]:
    """Return the sub-folders that are named like shards, and the others but for hidden ones."""
    try:
        with os.scandir(root) as entries:
            names = sorted(e.name for e in entries if e.name[0] not in "._" and e.is_dir())
    except OSError as error:
        raise SourceError(f"{root} cannot be read ({error.strerror})") from error
    shards = [name for name in names if _SHARD_FOLDER.fullmatch(name)]
    return shards, [name for name in names if not _SHARD_FOLDER.fullmatch(name)]


def _list_shard(folder: str) -> list[str]:
    """Return the names of the files in a shard's folder, in order.

    Raises:
        PermissionError: it may not be read.
        SourceError: reading it fails.
    """
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except PermissionError:
        raise
    except OSError as error:
        raise SourceError(f"{folder} cannot be read ({error.strerror})") from error


def _digest(folder: str) -> str:
    """Return what changes with the name, size or time of any file in a shard's folder."""
    digest = hashlib.sha256()
    try:
        names = _list_shard(folder)
    except PermissionError:
        return "may not be read"
    for name in names:
        num_bytes, mtime_ns = size_and_time(f"{folder}/{name}")
        digest.update(os.fsencode(name) + f"\0{num_bytes} {mtime_ns}\n".encode())
    return digest.hexdigest()


def _is_whole_parquet(path: str) -> bool:
    """Say whether a file ends as a Parquet file does: it was written to its end."""
    try:
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            return file.read() == b"PAR1"
    except OSError:
        return False


def _failures(path: str) -> Iterator[Problem]:
    """Yield why rows of a shard's records gave no image, each reason once, the commonest first."""
    place = printable(path)
    try:
        counts, num_rows = _count_failures(path)
    except ValueError as error:
        yield Problem(place=place, reason=f"the record of its downloads cannot be read ({error})")
        return
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    for (what, message), count in ordered[:_MAX_REASONS]:
        yield Problem(place=place, reason=f"{count:,} of {num_rows:,} rows were {what}: {message}")
    others = ordered[_MAX_REASONS:]
    if others:
        total = sum(count for _, count in others)
        reason = f"{total:,} of {num_rows:,} rows failed for {len(others):,} other reasons"
        yield Problem(place=place, reason=reason)


def _count_failures(path: str) -> tuple[Counter[tuple[str, str]], int]:
    """Return the rows that failed by (what, message), and the number of all rows."""
    import pyarrow as pa  # here: it takes 0.2 s
    import pyarrow.parquet as pq

    counts: Counter[tuple[str, str]] = Counter()
    num_rows = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = [n for n in ("status", "error_message") if n in file.schema_arrow.names]
            if "status" not in columns:  # some other table that is named like the shard
                return counts, 0
            for batch in file.iter_batches(columns=columns):
                num_rows += len(batch)
                for row in batch.to_pylist():
                    what = _FAILURES.get(row["status"])
                    if what is not None:
                        counts[what, _one_line(row.get("error_message"))] += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error
    return counts, num_rows


def _one_line(message: object) -> str:
    return " ".join(str(message or "no reason given").split())[:_MAX_REASON]
