"""Where a corpus or a cache lies: a path of this machine, or a URL of an object store.

Every request to an object store is made through this file, and made *patiently*: throttling, cut
connections and servers that are away for a moment are waited for, so that they neither end a build nor
reject an image. Credentials come from the environment, as each store's own tools take them; a URL
that holds some is refused, and error messages lose whatever stands behind a ``?``.
"""

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import fsspec
from upath import UPath

from ...errors import SettingError, StorageError, first_line, one_line

Location = Path | UPath
"""A path of this machine, absolute, or the URL of an object store."""

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
"""Our extra that installs what a protocol needs."""

PROTOCOLS = (*_EXTRAS, "hf", "memory")

_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_QUERY = re.compile(r"\?[^\s'\"<>]+")  # of signed URLs: signatures, tokens
_LOGIN = re.compile(r"//[^\s'\"<>@]*:[^\s'\"<>@]*@")  # of an endpoint or a proxy: user and password

_WAITS_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 20.0)
"""Before each further try: a minute in all, beside what the store's client waits itself."""

_S3_CONNECTIONS = 64

_SILENT_TRIES = 3
"""After so many a line says what is waited for."""

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
"""Packages whose own errors, if they are no OSError, come of the network or the server."""

_log = logging.getLogger("siglip2_cache")

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """What a store says of an object, or a file system of a file."""

    num_bytes: int
    mtime_ns: int | None
    """Time of its last change in nanoseconds; None where the store does not tell."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder of an object store."""

    name: str
    status: ObjectStatus | None
    """None for a folder."""


def is_url(text: str) -> bool:
    """Say whether a text names something by URL (``file:`` too), of whatever protocol."""
    return _URL.match(text) is not None


def parse_location(text: str | os.PathLike[str] | UPath) -> Location:
    """Return what a path or a URL names; a path is made absolute, ``~`` is the home folder.

    Raises:
        SettingError: the URL holds credentials, names no bucket, or is of a protocol that is not
            known here, or whose package is not installed.
    """
    if isinstance(text, UPath):
        is_local = text.protocol in ("", "file", "local")
        return Path(os.path.abspath(text.path)) if is_local else text
    given = os.fspath(text)
    found = _URL.fullmatch(given)
    if found is None:
        return Path(os.path.abspath(os.path.expanduser(given)))
    protocol, rest = found["protocol"].lower(), found["rest"]
    if protocol == "file":
        return parse_location(f"/{rest.lstrip('/')}")
    shown = _without_secrets(given)
    if protocol not in PROTOCOLS:
        raise SettingError(
            f"{shown} is of a protocol that is not known here; expected a path or a URL that begins "
            f"with {', '.join(f'{name}://' for name in PROTOCOLS)}"
        )
    bucket, _, path = rest.partition("/")
    if protocol != "hf" and not protocol.startswith("abfs") and ("@" in bucket or ":" in bucket):
        raise SettingError(
            f"a {protocol}:// URL holds credentials or a port; leave them out: credentials and "
            "endpoint are taken from the environment, as the store's own tools take them"
        )
    if "?" in rest or "#" in rest:
        raise SettingError(f"{shown} has a ? or # in it, which no location may have; leave it out")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not bucket or ".." in parts:
        raise SettingError(f"{shown} names no place in a store; expected {protocol}://BUCKET/PATH")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError:
        raise SettingError(
            f"{shown} needs a package that is not installed; pip install "
            f"'siglip2-cache[{_EXTRAS.get(protocol, protocol)}]'"
        ) from None
    return _make(protocol, "/".join([bucket, *parts]))


def given_location(text: str) -> Location:
    """Return a path as it was given, relative or not, ``~`` the home folder; or what a URL names."""
    return parse_location(text) if is_url(text) else Path(os.path.expanduser(text))


def _make(protocol: str, path: str) -> UPath:
    # Else botocore keeps 10 connections, whatever the number of threads that ask.
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        options["config_kwargs"] = {"max_pool_connections": _S3_CONNECTIONS}
    return UPath(f"{protocol}://{path}", **options)


def filesystem(location: UPath) -> Any:
    """Return the fsspec file system of an object store; it remembers no listings."""
    found: Any = location.fs
    is_forked = getattr(found, "_pid", os.getpid()) != os.getpid()  # its thread is our parent's
    if is_forked or location.protocol == "hf":  # which is for the thread that made it
        found = fsspec.filesystem(location.protocol, **location.storage_options)
    cached: Any = getattr(found, "dircache", None)
    if hasattr(cached, "use_listings_cache"):  # what others write must be seen; hf keeps a dict
        cached.use_listings_cache = False
    if hasattr(
        found, "retries"
    ):  # of s3fs, five times over those of botocore: minutes before we know
        found.retries = 1
    return found


def read_bytes(location: Location, start: int = 0, length: int | None = None) -> bytes:
    """Return an object's bytes from ``start`` on, ``length`` of them; fewer where it ends before.

    Raises:
        FileNotFoundError, PermissionError: there is none, or it may not be read.
        StorageError: the store does not answer.
    """
    if not isinstance(location, UPath):
        with location.open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)
    if length == 0:
        return b""
    fs, path = filesystem(location), location.path
    if start == 0 and length is None:
        # Else s3fs asks for the size first, to read large objects in parts.
        options = {"max_concurrency": 1} if location.protocol in ("s3", "s3a") else {}
        return patiently(lambda: fs.cat_file(path, **options), location)
    end = None if length is None else start + length
    try:
        return patiently(lambda: fs.cat_file(path, start=start, end=end), location)
    except _RangeError:  # a store refuses a range that begins behind the end
        return b""


def status_of(location: Location) -> ObjectStatus | None:
    """Return size and time of a file or an object; None where there is none, or it is a folder.

    Raises:
        PermissionError, StorageError: as read_bytes.
    """
    if not isinstance(location, UPath):
        try:
            status = location.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ObjectStatus(status.st_size, status.st_mtime_ns) if location.is_file() else None
    fs, path = filesystem(location), location.path
    try:
        return _status(patiently(lambda: fs.info(path), location))
    except FileNotFoundError:
        return None


NAMELESS = "/"
"""Name of the entry that stands for a folder without a name: objects whose keys hold ``//``."""


def list_folder(folder: UPath, *, with_nameless: bool = False) -> list[Entry]:
    """Return what lies in a folder of an object store, by name; nothing where there is none.

    No client reads what lies in a folder without a name. ``with_nameless`` tells that there is one.

    Raises:
        PermissionError, StorageError: as read_bytes.
    """
    fs, path = filesystem(folder), folder.path.rstrip("/")
    try:
        found: list[dict[str, Any]] = patiently(lambda: fs.ls(path, detail=True), folder)
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
    """Say what there is, without listing a folder: in an object store, one is where objects lie below.

    Raises:
        PermissionError, StorageError: as read_bytes.
    """
    if not isinstance(location, UPath):
        if location.is_dir():
            return "folder"
        return "file" if location.exists() else None
    fs, path = filesystem(location), location.path.rstrip("/")
    try:
        info = patiently(lambda: fs.info(path), location)
    except FileNotFoundError:
        return None
    return "folder" if info.get("type") == "directory" else "file"


def is_folder(location: Location) -> bool:
    """Say whether there is such a folder; in an object store, whether objects lie below it."""
    return kind_of(location) == "folder"


def lies_in(location: Location, folder: Location) -> bool:
    """Say whether a place is a folder, or anywhere below it, links followed."""
    if isinstance(location, UPath) or isinstance(folder, UPath):
        return relative_to(location, folder) is not None
    return Path(os.path.realpath(location)).is_relative_to(os.path.realpath(folder))


def relative_to(location: Location | str, folder: Location | str) -> str | None:
    """Return the way from a folder to a place below it, with forward slashes; None where it is not
    below it. Nothing leads from a folder of this machine to a URL, or back. Texts are locations as
    they are recorded, of protocols that need not be installed."""
    whole, prefix = str(location).rstrip("/"), str(folder).rstrip("/")
    if is_url(whole) != is_url(prefix):
        return None
    if not is_url(whole):
        whole_path, prefix_path = Path(str(location)), Path(str(folder))
        if not whole_path.is_relative_to(prefix_path):
            return None
        way = whole_path.relative_to(prefix_path).as_posix()
        return "" if way == "." else way
    if whole == prefix:
        return ""
    return whole.removeprefix(f"{prefix}/") if whole.startswith(f"{prefix}/") else None


def join(folder: Location, way: str) -> Location:
    """Return the place that a relative path leads to; ``..`` is followed, in an object store by name.

    Raises:
        FileNotFoundError: it leads out of the bucket.
    """
    if not isinstance(folder, UPath):
        return folder / way
    protocol, _, rest = str(folder).partition("://")
    parts = [part for part in rest.split("/") if part]
    for part in way.split("/"):
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
        if not parts:
            raise FileNotFoundError(errno.ENOENT, "the path leads out of the bucket", way)
    return _make(protocol, "/".join(parts))


def patiently(call: Callable[[], _Result], location: Location) -> _Result:
    """Return what a request to a store gives, made again where network or server failed.

    Only for requests that may be made twice.

    Raises:
        FileNotFoundError, FileExistsError, PermissionError: the store's answer, at once.
        SettingError: there are no credentials.
        StorageError: no answer after a minute.
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
            if not _is_of_network(error):
                raise
            if wait_s is None:
                raise StorageError(
                    f"{location} cannot be had: {_clean(error)}; what is finished is kept, run the "
                    "same command again when the store answers"
                ) from None
            if number == _SILENT_TRIES:
                _log.warning("%s does not answer (%s); trying on", location, _clean(error))
        time.sleep(wait_s * random.uniform(0.5, 1.0))
    raise AssertionError


class _RangeError(Exception):
    """A range that begins behind an object's end."""


def _is_range_error(error: Exception) -> bool:
    text = f"{error} {getattr(error, 'code', '')}"
    if text.endswith(" 416"):  # gcsfs
        return True
    return "InvalidRange" in text or "not satisfiable" in text.lower()


def _is_of_network(error: BaseException | None) -> bool:
    if error is None:
        return False
    if isinstance(error, (OSError, EOFError)):
        return True
    return type(error).__module__.partition(".")[0] in _NETWORK


def _refuse_wrong_settings(error: Exception, location: Location) -> None:
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    if "Credential" in names or "ProfileNotFound" in names or "LocalTokenNotFound" in names:
        raise SettingError(
            f"there are no credentials for {location} ({_clean(error)}); set them in the environment, "
            "as the store's own tools take them"
        ) from None
    if "OfflineMode" in names:
        raise SettingError(
            f"{location} is on the hub, and HF_HUB_OFFLINE is set, so that nothing is fetched; unset it, "
            "or name a copy on this machine"
        ) from None
    if "ValidationError" in names or str(error).startswith(("Invalid endpoint", "Bad Request")):
        raise SettingError(
            f"{location} cannot be asked for: {_clean(error)}; mend the name, or the endpoint that the "
            "environment names"
        ) from None


def _clean(error: Exception) -> str:
    """Return what an error says, without what signs a request."""
    said = first_line(error)
    if said.endswith(":"):  # botocore lists below what is wrong with a request
        said = " ".join(str(error).split())
    return _without_secrets(said)[:300]


def _without_secrets(text: str) -> str:
    return one_line(_LOGIN.sub("//...@", _QUERY.sub("?...", text)))


def _status(info: dict[str, Any]) -> ObjectStatus | None:
    if info.get("type") == "directory":
        return None
    times = (info.get(name) for name in ("LastModified", "mtime", "last_modified", "updated"))
    changed = next((time for time in times if time is not None), None) or info.get("created")
    return ObjectStatus(int(info.get("size") or 0), _nanoseconds(changed))


def _nanoseconds(changed: object) -> int | None:
    """Return whole seconds: a HEAD request gives no more, whatever a listing gives."""
    if isinstance(changed, str):
        try:
            changed = datetime.fromisoformat(changed)
        except ValueError:
            return None
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return int(changed) * 10**9 if isinstance(changed, (int, float)) else None
