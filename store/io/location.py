"""Locations: paths of this machine and URLs of object stores, parsed and compared.

Credentials come from the environment, as the tools of each store read them. A URL that contains
credentials is refused.
"""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from upath import UPath

from ...errors import SettingError
from ...formatting import one_line

Location = Path | UPath
"""An absolute path of this machine, or the URL of an object store."""

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
"""The extra of this package that installs what a protocol needs."""

PROTOCOLS = (*_EXTRAS, "hf", "memory")

_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_QUERY = re.compile(r"\?[^\s'\"<>]+")  # of signed URLs: signatures and tokens
_LOGIN = re.compile(r"//[^\s'\"<>@]*:[^\s'\"<>@]*@")  # user and password of an endpoint or a proxy

_S3_CONNECTIONS = 64
"""Connections of botocore, whose default of 10 would limit the number of parallel requests."""


def is_url(text: str) -> bool:
    """Return whether a text is a URL, of any protocol, ``file:`` included."""
    return _URL.match(text) is not None


def parse_location(text: str | os.PathLike[str] | UPath) -> Location:
    """Return the location that a path or URL names. A path is made absolute, ``~`` is expanded.

    Raises:
        SettingError: the URL contains credentials or names no bucket, its protocol is not supported,
            or the package for the protocol is not installed.
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
    shown = without_secrets(given)
    if protocol not in PROTOCOLS:
        raise SettingError(
            f"{shown} has an unsupported protocol; expected a path or a URL that begins "
            f"with {', '.join(f'{name}://' for name in PROTOCOLS)}"
        )
    bucket, _, path = rest.partition("/")
    if protocol != "hf" and not protocol.startswith("abfs") and ("@" in bucket or ":" in bucket):
        raise SettingError(
            f"a {protocol}:// URL contains credentials or a port; remove them: credentials and "
            "endpoint are read from the environment, as the tools of the store read them"
        )
    if "?" in rest or "#" in rest:
        raise SettingError(f"{shown} contains ? or #, which a location may not; remove it")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not bucket or ".." in parts:
        raise SettingError(f"{shown} names no location; expected {protocol}://BUCKET/PATH")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError:
        raise SettingError(
            f"{shown} needs a package that is not installed; run pip install "
            f"'siglip2-cache[{_EXTRAS.get(protocol, protocol)}]'"
        ) from None
    return _make_url(protocol, "/".join([bucket, *parts]))


def given_location(text: str) -> Location:
    """Return a path as given, relative or not, with ``~`` expanded; or the location of a URL."""
    return parse_location(text) if is_url(text) else Path(os.path.expanduser(text))


def _make_url(protocol: str, path: str) -> UPath:
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        options["config_kwargs"] = {"max_pool_connections": _S3_CONNECTIONS}
    return UPath(f"{protocol}://{path}", **options)


def lies_in(location: Location, folder: Location) -> bool:
    """Return whether a location is a folder or below it, symbolic links resolved."""
    if isinstance(location, UPath) or isinstance(folder, UPath):
        return relative_to(location, folder) is not None
    return Path(os.path.realpath(location)).is_relative_to(os.path.realpath(folder))


def relative_to(location: Location | str, folder: Location | str) -> str | None:
    """Return the path of a location relative to a folder, or None if it is not below the folder.

    A URL is never below a folder of this machine, or the reverse. Texts are locations as recorded;
    their protocols need not be installed.
    """
    whole, prefix = str(location).rstrip("/"), str(folder).rstrip("/")
    if is_url(whole) != is_url(prefix):
        return None
    if not is_url(whole):
        whole_path, prefix_path = Path(str(location)), Path(str(folder))
        if not whole_path.is_relative_to(prefix_path):
            return None
        relative_path = whole_path.relative_to(prefix_path).as_posix()
        return "" if relative_path == "." else relative_path
    if whole == prefix:
        return ""
    return whole.removeprefix(f"{prefix}/") if whole.startswith(f"{prefix}/") else None


def join(folder: Location, relative_path: str) -> Location:
    """Return the location of a relative path in a folder; in an object store ``..`` is resolved by name.

    Raises:
        FileNotFoundError: the path leads out of the bucket.
    """
    if not isinstance(folder, UPath):
        return folder / relative_path
    protocol, _, rest = str(folder).partition("://")
    parts = [part for part in rest.split("/") if part]
    for part in relative_path.split("/"):
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
        if not parts:
            raise FileNotFoundError(errno.ENOENT, "the path leads out of the bucket", relative_path)
    return _make_url(protocol, "/".join(parts))


def relocate(folder: str, corpus_roots: Mapping[str, str]) -> Location:
    """Return the location of a recorded folder or URL after its longest matching prefix was replaced.

    If the new folder is below the old one, whatever is below the new one has already been moved.

    Args:
        folder: the recorded location.
        corpus_roots: old prefix to new prefix.
    """
    for old in sorted(corpus_roots, key=len, reverse=True):
        new = corpus_roots[old]
        if relative_to(folder, new) is not None and relative_to(new, old) is not None:
            break
        relative_path = relative_to(folder, old)
        if relative_path is not None:
            moved = parse_location(new) if is_url(new) else Path(new)
            return join(moved, relative_path) if relative_path else moved
    return parse_location(folder) if is_url(folder) else Path(folder)


def without_secrets(text: str) -> str:
    """Return a text as one line, without the queries and passwords of the URLs in it."""
    return one_line(_LOGIN.sub("//...@", _QUERY.sub("?...", text)))
