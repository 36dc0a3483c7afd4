"""Object stores for the tests of the store."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest

from siglip2_cache.store.io import requests
from siglip2_cache.store.io.download_cache import LocalCopies
from siglip2_cache.store.io.location import parse_location
from siglip2_cache.store.io.remote import RemoteStorage
from siglip2_cache.store.io.storage import open_storage

if TYPE_CHECKING:
    from kit.s3 import S3


@pytest.fixture
def memory() -> Iterator[str]:
    """Empty the memory store of fsspec and return the URL of a bucket in it."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    store.store.clear()


@pytest.fixture
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once, a few times."""
    monkeypatch.setattr(requests, "_WAITS_S", (0.01,) * 6)


@pytest.fixture
def remote(s3: "S3", fast_retries: None, tmp_path: Path) -> RemoteStorage:
    found = open_storage(parse_location(f"{s3.url}/cache"), LocalCopies(tmp_path / "copies"))
    assert isinstance(found, RemoteStorage)
    return found
