"""Publishing several files as one: all of them become visible with a record, or none does.

A *commit* is a set of files and the record that names them with their checksums. Its steps:

1. Every file is written under a name of its own (``<path>.<commit>.<token>.partial``) and synced.
2. An *intent* (``<record>.intent``), which names those partial files and holds the record, is created
   exclusively. This decides: of several processes that make one commit, exactly one creates it.
3. The intent is *rolled forward*: each partial is renamed to its final name, the record is created
   exclusively, the intent removed. Every step is synced before the next and can be repeated by
   anyone, so a process that finds another's intent finishes it instead of waiting: no lock is left
   behind by a process that died.

So a record never names bytes other than those on disk, even when two processes made the same unit
with different bytes. A power cut leaves partials (garbage), or an intent (finished by the next build).

A unit can be committed again (rejected rows tried once more, a torn record): that is another *attempt*,
``<commit>.r1.json`` after ``<commit>.json``. The highest attempt counts, and where that is torn the
unit is not committed. Lower ones are never removed: a slow process could otherwise take the unit for
an uncommitted one.
"""

import re
import secrets
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ...errors import DamagedCacheError
from ..io.storage import Storage
from .layout import is_garbage_name, record_of_staged
from .record_fields import read_fields
from .records import Record, encode_record, sha256_hex

_MEND_INTENT = "remove that .intent file and run the same build again"
_TOKEN_PARTIAL = re.compile(r"\.[0-9a-f]{12}\.partial$")


@dataclass
class Transaction:
    """One commit in the making. Files are staged one by one, so that none need stay in memory."""

    files: Storage
    record: str
    """Path of the record (layout.py)."""

    def __post_init__(self) -> None:
        self._token = secrets.token_hex(6)
        self._staged: dict[str, str] = {}
        self._described: dict[str, dict[str, Any]] = {}

    def add(self, path: str, data: bytes | bytearray | memoryview, **described: Any) -> None:
        """Stage one file durably; ``described`` goes into the record beside its checksum."""
        commit = PurePosixPath(self.record).name.removesuffix(".json")
        partial = f"{path}.{commit}.{self._token}.partial"
        self._staged[path] = partial
        try:
            self.files.write(partial, data)
        except BaseException:  # a full disk must not keep what nobody will publish
            self.abandon()
            raise
        self._described[path] = {
            **described,
            "num_bytes": len(data),
            "sha256": sha256_hex(data),
        }

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """What the record will say of each staged file."""
        return dict(self._described)

    def commit(self, fields: Record) -> bool:
        """Publish the staged files and the record; False where another process did so before us.

        Either way a whole commit stands on disk afterwards.
        """
        self.files.sync_folders(self._staged.values())
        intent = {"record": {**fields, "files": self._described}, "staged": self._staged}
        is_ours = not self.files.exists(self.record) and _create(
            self.files, intent_path(self.record), encode_record(intent), token=self._token
        )
        # Our intent may stand where a finished one stood a moment ago. That one's record came before
        # its removal, so roll_forward sees the record and drops ours.
        roll_forward(self.files, self.record)
        won = is_ours and self._is_published_ours(fields)
        self.abandon()
        return won

    def abandon(self) -> None:
        """Remove what was staged and not published."""
        self.files.remove_all(self._staged.values())

    def _is_published_ours(self, fields: Record) -> bool:
        expected = encode_record({**fields, "files": self._described})
        return self.files.read(self.record) == expected


def intent_path(record: str) -> str:
    """Return the path of the intent that stands before a record."""
    return f"{record}.intent"


@dataclass(frozen=True, slots=True)
class Intent:
    """A commit that was decided, and may not be finished."""

    record: Record
    """Fields of the record to be."""

    files: dict[str, dict[str, Any]]
    """What the record says of its files."""

    staged: dict[str, str]
    """Final path to partial."""


def read_intent(data: bytes, *, where: str) -> Intent:
    """Return what an intent says.

    Raises:
        DamagedCacheError, FormatVersionError: it cannot be used.
    """
    fields = read_fields(data, where=where)
    files = fields.fields("record").files()
    return Intent(fields.mapping("record"), files, fields.staged("staged", files))


def roll_forward(files: Storage, record: str) -> bool:
    """Finish a commit whose intent stands, whoever made it; True where the record then stands.

    Raises:
        DamagedCacheError: the intent, or a file it staged, was damaged from outside.
    """
    intent_file = intent_path(record)
    try:
        data = files.read(intent_file)
    except (FileNotFoundError, NotADirectoryError):  # a stray file has a folder's place
        return files.exists(record)
    if files.exists(record):
        files.remove(intent_file)
        return True
    try:
        intent = read_intent(data, where=files.where(intent_file))
    except DamagedCacheError as error:  # without hard links a crash can tear it (files.py)
        raise DamagedCacheError(f"{error}; {_MEND_INTENT}") from None
    renamed_before = {
        path: intent.files[path]
        for path, is_renamed in files.rename_all(intent.staged).items()
        if not is_renamed
    }
    for path in files.named_before(renamed_before, intent_file):
        if not _is_in_place(files, path, intent.files[path]):
            if files.exists(record):  # another process finished it, and a later attempt came
                return True
            raise DamagedCacheError(
                f"{files.where(path)} is not what the unfinished commit "
                f"{files.where(intent_file)} names; {_MEND_INTENT}"
            )
    files.sync_folders(intent.staged)
    _create(files, record, encode_record(intent.record), token=secrets.token_hex(6))
    files.remove(intent_file)
    return True


def clear_garbage(files: Storage, folder: str = "") -> list[str]:
    """Remove partials and intents of commits whose record stands; return their paths.

    Those of unfinished commits stay: a process may be writing them.
    """
    found: list[str] = []
    for path in files.walk():
        if not path.startswith(folder) or not is_garbage_name(path):
            continue
        record = _record_of_garbage(path)
        if record is not None and files.exists(record):
            found.append(path)
    files.remove_all(found)
    return found


def _create(files: Storage, path: str, data: bytes, *, token: str) -> bool:
    """Create a record or its intent; False where the name is taken, or the record came first."""
    try:
        return files.create(path, data, token=token)
    except FileNotFoundError:  # our partial: the record stands, and another process cleared garbage
        return False


def _record_of_garbage(path: str) -> str | None:
    """Return the record that a partial or an intent belongs to."""
    bare = _TOKEN_PARTIAL.sub("", path)
    if bare.endswith(".intent"):
        return bare.removesuffix(".intent")
    if bare.endswith(".json"):  # the partial of a record itself
        return bare
    return record_of_staged(bare)


def _is_in_place(files: Storage, path: str, described: dict[str, Any]) -> bool:
    try:
        return files.describe(path)["sha256"] == described["sha256"]
    except FileNotFoundError:
        return False
