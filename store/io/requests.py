"""Requests to object stores. Every request is made here and retried.

Throttling, dropped connections and short outages neither end a build nor reject an image. Error
messages omit everything after a ``?`` in a URL, which may sign a request.
"""

import errno
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

import fsspec
from upath import UPath

from ...errors import SettingError, StorageError
from ...formatting import first_line, short_line
from .location import Location, without_secrets

_WAITS_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 20.0)
"""Pause before each retry: a minute in all, besides the pauses of the client library."""

_SILENT_RETRIES = 3
"""A warning is logged after this many retries."""

_FINAL = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
)
_NETWORK = {
    *("aiohttp", "botocore", "aiobotocore", "azure", "gcsfs", "google", "httpcore", "httpx"),
    *("huggingface_hub", "requests", "urllib3"),
}
"""Packages whose own errors are caused by the network or the server, unless they are OSErrors."""

_log = logging.getLogger("siglip2_cache")

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """Size and time of an object or a file."""

    num_bytes: int
    mtime_ns: int | None
    """Time of the last change in nanoseconds; None where the store does not report it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder of an object store."""

    name: str
    status: ObjectStatus | None
    """None for a folder."""


def filesystem(location: UPath) -> Any:
    """Return the fsspec file system of an object store, with its cache of listings disabled."""
    found: Any = location.fs
    is_forked = getattr(found, "_pid", os.getpid()) != os.getpid()  # its thread is in the parent
    if is_forked or location.protocol == "hf":  # hf: not thread-safe
        found = fsspec.filesystem(location.protocol, **location.storage_options)
    cached: Any = getattr(found, "dircache", None)
    if hasattr(cached, "use_listings_cache"):  # changes by others must be visible; hf keeps a dict
        cached.use_listings_cache = False
    if hasattr(found, "retries"):  # s3fs: five on top of those of botocore would take minutes
        found.retries = 1
    return found


def read_bytes(location: Location, start: int = 0, length: int | None = None) -> bytes:
    """Return ``length`` bytes of a file from ``start`` on, fewer if it ends before.

    Raises:
        FileNotFoundError, PermissionError: the file does not exist, or may not be read.
        StorageError: the store does not respond.
    """
    if not isinstance(location, UPath):
        with location.open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)
    if length == 0:
        return b""
    fs, path = filesystem(location), location.path
    if start == 0 and length is None:
        # Without this s3fs requests the size first, to read large objects in parts.
        options = {"max_concurrency": 1} if location.protocol in ("s3", "s3a") else {}
        return with_retries(lambda: fs.cat_file(path, **options), location)
    end = None if length is None else start + length
    try:
        return with_retries(lambda: fs.cat_file(path, start=start, end=end), location)
    except _RangeError:  # the range begins after the end
        return b""


def status_of(location: Location) -> ObjectStatus | None:
    """Return size and time of a file, or None if it does not exist or is a folder.

    Raises:
        PermissionError: access is denied.
        StorageError: the store does not respond.
    """
    if not isinstance(location, UPath):
        try:
            status = location.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ObjectStatus(status.st_size, status.st_mtime_ns) if location.is_file() else None
    fs, path = filesystem(location), location.path
    try:
        return _status(with_retries(lambda: fs.info(path), location))
    except FileNotFoundError:
        return None


NAMELESS = "/"
"""Name of the entry for a folder without a name: objects whose keys contain ``//``."""


def list_folder(folder: UPath, *, with_nameless: bool = False) -> list[Entry]:
    """Return the entries of a folder of an object store by name, none if it does not exist.

    Args:
        folder: its URL.
        with_nameless: whether to include an entry for a folder without a name. No client can read
            what is in such a folder.

    Raises:
        PermissionError: access is denied.
        StorageError: the store does not respond.
    """
    fs, path = filesystem(folder), folder.path.rstrip("/")
    try:
        found: list[dict[str, Any]] = with_retries(lambda: fs.ls(path, detail=True), folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    prefix = f"{path.lstrip('/')}/"
    entries = [
        Entry(str(info["name"]).lstrip("/").removeprefix(prefix).rstrip("/"), _status(info))
        for info in found
        if str(info["name"]).strip("/") != path.strip("/")  # an object that marks the folder
    ]
    if with_nameless and any(_is_nameless(info, path) for info in found):
        entries.append(Entry(NAMELESS, None))
    return sorted(entries, key=lambda entry: entry.name)


def _is_nameless(info: Mapping[str, Any], path: str) -> bool:
    name = str(info["name"])
    return (
        info.get("type") == "directory" and name.strip("/") == path.strip("/") and name[-1:] == "/"
    )


def kind_of(location: Location) -> Literal["folder", "file"] | None:
    """Return what exists at a location, without listing a folder; None for nothing.

    In an object store a folder exists if objects are below it.

    Raises:
        PermissionError: access is denied.
        StorageError: the store does not respond.
    """
    if not isinstance(location, UPath):
        if location.is_dir():
            return "folder"
        return "file" if location.exists() else None
    fs, path = filesystem(location), location.path.rstrip("/")
    try:
        info = with_retries(lambda: fs.info(path), location)
    except FileNotFoundError:
        return None
    return "folder" if info.get("type") == "directory" else "file"


def is_folder(location: Location) -> bool:
    """Return whether a location is a folder; raises as kind_of does."""
    return kind_of(location) == "folder"


def with_retries(call: Callable[[], _Result], location: Location) -> _Result:
    """Return the result of a request, repeated after errors of the network or the server.

    The request must be safe to repeat.

    Raises:
        FileNotFoundError, FileExistsError, PermissionError: the response of the store, not retried.
        SettingError: credentials are missing, or a name or endpoint is invalid.
        StorageError: no success after a minute.
    """
    for number, wait_s in enumerate((*_WAITS_S, None)):
        try:
            return call()
        except FileNotFoundError as error:
            reason = "no such object, or no such bucket"
            raise FileNotFoundError(errno.ENOENT, reason, str(location)) from error
        except PermissionError as error:
            raise PermissionError(errno.EACCES, "the store denies access", str(location)) from error
        except _FINAL:
            raise
        except Exception as error:
            _refuse_wrong_settings(error, location)
            if _is_range_error(error):
                raise _RangeError from None
            if not _is_network_error(error):
                raise
            if wait_s is None:
                raise StorageError(
                    f"{location} is unreachable: {_clean(error)}; finished work is kept, run the same "
                    "command again when the store responds"
                ) from None
            if number == _SILENT_RETRIES:
                message = f"{location}: no answer, retrying ({_clean(error)})"
                _log.warning("%s", short_line(message))
        time.sleep(wait_s * random.uniform(0.5, 1.0))
    raise AssertionError


class _RangeError(Exception):
    """A range begins after the end of an object."""


def _is_range_error(error: Exception) -> bool:
    text = f"{error} {getattr(error, 'code', '')}"
    if text.endswith(" 416"):  # gcsfs
        return True
    return "InvalidRange" in text or "not satisfiable" in text.lower()


def _is_network_error(error: Exception) -> bool:
    if isinstance(error, (OSError, EOFError)):
        return True
    return type(error).__module__.partition(".")[0] in _NETWORK


def _refuse_wrong_settings(error: Exception, location: Location) -> None:
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    if "Credential" in names or "ProfileNotFound" in names or "LocalTokenNotFound" in names:
        raise SettingError(
            f"no credentials for {location} ({_clean(error)}); set them in the environment, as the "
            "tools of the store read them"
        ) from None
    if "OfflineMode" in names:
        raise SettingError(
            f"{location} is on the hub and HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, "
            "or name a copy on this machine"
        ) from None
    if "ValidationError" in names or str(error).startswith(("Invalid endpoint", "Bad Request")):
        raise SettingError(
            f"{location} is invalid: {_clean(error)}; correct the name, or the endpoint in the "
            "environment"
        ) from None


def _clean(error: Exception) -> str:
    """Return the message of an error, without what signs a request."""
    message = first_line(error)
    if message.endswith(":"):  # botocore lists the errors of a request on the next lines
        message = " ".join(str(error).split())
    return without_secrets(message)[:300]


def _status(info: dict[str, Any]) -> ObjectStatus | None:
    if info.get("type") == "directory":
        return None
    times = (info.get(name) for name in ("LastModified", "mtime", "last_modified", "updated"))
    changed = next((time for time in times if time is not None), None) or info.get("created")
    return ObjectStatus(int(info.get("size") or 0), _nanoseconds(changed))


def _nanoseconds(changed: object) -> int | None:
    """Return a time in whole seconds, as nanoseconds: HEAD requests give no more, listings may."""
    if isinstance(changed, str):
        try:
            changed = datetime.fromisoformat(changed)
        except ValueError:
            return None
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return int(changed) * 10**9 if isinstance(changed, (int, float)) else None
