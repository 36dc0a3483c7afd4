"""Commits: several files become visible together with their record, or not at all.

A *commit* is a set of files and the record that names them with their checksums. Its steps:

1. Every file is written under a temporary name (``<path>.<commit>.<token>.partial``) and synced.
2. An *intent* (``<record>.intent``), which names the partial files and contains the record, is created
   exclusively. If several processes make the same commit, exactly one creates it.
3. The intent is *rolled forward*: each partial file is renamed to its final name, the record is created
   exclusively, the intent is removed. Every step is synced before the next, and any process can repeat
   it. So a process that finds the intent of another one finishes it, and a process that dies leaves no
   lock behind.

So the bytes on disk are always those of the record, even if two processes made the same unit with
different bytes. A power cut leaves partial files (garbage) or an intent (finished by the next build).

A unit can be committed again, to retry rejected rows or to replace a damaged record. That is another
*attempt*: ``<commit>.r1.json`` after ``<commit>.json``. The highest attempt counts; if its record is
damaged, the unit is not committed. Lower attempts are never removed, so that no slow process mistakes the
unit for an uncommitted one.
"""

import contextlib
import hashlib
import re
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ...errors import DamagedCacheError
from ..io.storage import Storage
from .layout import is_garbage_name, record_of_staged
from .record_fields import read_fields
from .records import Record, encode_record, sha256_hex

_REMEDY = "remove that .intent file and run the same build again"
_TOKEN_PARTIAL = re.compile(r"\.[0-9a-f]{12}\.partial$")


@dataclass
class Transaction:
    """A commit being made. Files are staged one by one, so that none stays in memory."""

    files: Storage
    record: str
    """Path of the record."""

    def __post_init__(self) -> None:
        self._token = secrets.token_hex(6)
        self._staged: dict[str, str] = {}
        self._descriptions: dict[str, dict[str, Any]] = {}

    def add(self, path: str, data: bytes | bytearray | memoryview, **description: Any) -> None:
        """Stage a file durably. The record will contain ``description`` and the checksum."""
        partial = self._stage(path)
        try:
            self.files.write(partial, data)
        except BaseException:  # remove what will not be published from a full disk
            self.abandon()
            raise
        self._descriptions[path] = {
            **description,
            "num_bytes": len(data),
            "sha256": sha256_hex(data),
        }

    @contextmanager
    def adding(self, path: str, **description: Any) -> Generator[Callable[[bytes], None]]:
        """Return a context whose value appends bytes to a file, which is staged durably at the end.

        The record will contain ``description`` and the checksum.
        """
        digest, num_bytes = hashlib.sha256(), 0
        try:
            with self.files.writing(self._stage(path)) as write:

                def append(piece: bytes) -> None:
                    nonlocal num_bytes
                    digest.update(piece)
                    num_bytes += len(piece)
                    write(piece)

                yield append
        except BaseException:
            self.abandon()
            raise
        self._descriptions[path] = {
            **description,
            "num_bytes": num_bytes,
            "sha256": digest.hexdigest(),
        }

    def _stage(self, path: str) -> str:
        """Return the path of the partial file of a file."""
        commit = PurePosixPath(self.record).name.removesuffix(".json")
        partial = f"{path}.{commit}.{self._token}.partial"
        self._staged[path] = partial
        return partial

    @property
    def descriptions(self) -> dict[str, dict[str, Any]]:
        """The description of each staged file in the record."""
        return dict(self._descriptions)

    def commit(self, fields: Record) -> bool:
        """Publish the staged files and the record. Return False if another process was first.

        In both cases a complete commit is on disk afterwards.
        """
        self.files.sync_folders(self._staged.values())
        intent = {"record": {**fields, "files": self._descriptions}, "staged": self._staged}
        is_ours = not self.files.exists(self.record) and _create(
            self.files, intent_path(self.record), encode_record(intent), token=self._token
        )
        # Our intent may replace one that was just finished and removed. Its record was created before
        # the removal, so roll_forward sees the record and removes our intent.
        roll_forward(self.files, self.record)
        won = is_ours and self._is_published_ours(fields)
        self.abandon()
        return won

    def abandon(self) -> None:
        """Remove the files that were staged and not published."""
        self.files.remove_all(self._staged.values())

    def _is_published_ours(self, fields: Record) -> bool:
        expected = encode_record({**fields, "files": self._descriptions})
        return self.files.read(self.record) == expected


def intent_path(record: str) -> str:
    """Return the path of the intent of a record."""
    return f"{record}.intent"


@dataclass(frozen=True, slots=True)
class Intent:
    """A commit that is decided, and may be unfinished."""

    record: Record
    """Fields of the record."""

    files: dict[str, dict[str, Any]]
    """Descriptions of the files."""

    staged: dict[str, str]
    """Path of the partial file by final path."""


def read_intent(data: bytes, *, where: str) -> Intent:
    """Return the intent in a file.

    Raises:
        DamagedCacheError, FormatVersionError: it cannot be read.
    """
    fields = read_fields(data, where=where)
    files = fields.fields("record").files()
    return Intent(fields.mapping("record"), files, fields.staged("staged", files))


def roll_forward(files: Storage, record: str) -> bool:
    """Finish a commit if its intent exists. Return whether the record then exists.

    Raises:
        DamagedCacheError: the intent or a staged file was damaged from outside.
    """
    intent_file = intent_path(record)
    try:
        data = files.read(intent_file)
    except (FileNotFoundError, NotADirectoryError):  # a file may have the name of the folder
        return files.exists(record)
    if files.exists(record):
        _mend_truncated(files, record, data)
        files.remove(intent_file)
        return True
    try:
        intent = read_intent(data, where=files.where(intent_file))
    except DamagedCacheError as error:  # without hard links a crash can truncate it (io/local.py)
        raise DamagedCacheError(f"{error}; {_REMEDY}") from None
    renamed_before = {
        path: intent.files[path]
        for path, is_renamed in files.rename_all(intent.staged).items()
        if not is_renamed
    }
    for path in files.named_before(renamed_before, intent_file):
        if not _is_in_place(files, path, intent.files[path]):
            if files.exists(
                record
            ):  # another process finished it, and a later attempt replaced the file
                return True
            raise DamagedCacheError(
                f"{files.where(path)} does not match the unfinished commit "
                f"{files.where(intent_file)}; {_REMEDY}"
            )
    files.sync_folders(intent.staged)
    _create(files, record, encode_record(intent.record), token=secrets.token_hex(6))
    files.remove(intent_file)
    return True


def _mend_truncated(files: Storage, record: str, intent: bytes) -> None:
    """Write a record again that a crash has truncated, as may happen without hard links (io/local.py)."""
    try:
        read_fields(files.read(record), where=record)
    except DamagedCacheError:
        try:
            whole = read_intent(intent, where=record)
        except DamagedCacheError:
            return
        files.replace(record, encode_record(whole.record))


def clear_garbage(files: Storage, folder: str = "") -> list[str]:
    """Remove partial files and intents of finished commits, and return their paths.

    Those of unfinished commits are kept: a process may be writing them.
    """
    found: list[str] = []
    for path in files.walk():
        if not path.startswith(folder) or not is_garbage_name(path):
            continue
        record = _record_of_garbage(path)
        if record is not None and files.exists(record):
            if path == intent_path(record):
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    _mend_truncated(files, record, files.read(path))
            found.append(path)
    files.remove_all(found)
    return found


def _create(files: Storage, path: str, data: bytes, *, token: str) -> bool:
    """Create a record or its intent. Return False if the name exists, or the record came first."""
    try:
        return files.create(path, data, token=token)
    except FileNotFoundError:  # the record exists, and another process removed our partial file
        return False


def _record_of_garbage(path: str) -> str | None:
    """Return the record of a partial file or an intent."""
    bare = _TOKEN_PARTIAL.sub("", path)
    if bare.endswith(".intent"):
        return bare.removesuffix(".intent")
    if bare.endswith(".json"):  # a partial file of the record itself
        return bare
    return record_of_staged(bare)


def _is_in_place(files: Storage, path: str, description: dict[str, Any]) -> bool:
    try:
        return files.describe(path)["sha256"] == description["sha256"]
    except FileNotFoundError:
        return False
