"""A bucket in the memory of this process, as ``memory://`` names it, that counts what is asked of it."""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from fsspec.implementations.memory import MemoryFileSystem


class MemoryBucket:
    """Objects below ``url``."""

    def __init__(self) -> None:
        self._name = f"bucket-{uuid.uuid4().hex[:8]}"
        self.url = f"memory://{self._name}"
        self.requests: Counter[str] = Counter()
        """By method: cat_file (GET), info (HEAD), ls."""

        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self.before: Callable[[str, str], None] = lambda method, path: None
        """Called before each request, with its method and path; what it raises is the answer."""

    def put(self, path: str, data: bytes | str) -> str:
        """Write an object, return its URL."""
        data = data.encode() if isinstance(data, str) else data
        MemoryFileSystem().pipe_file(f"/{self._name}/{path}", data)
        return f"{self.url}/{path}"

    def put_folder(self, folder: Path, prefix: str = "") -> str:
        """Write all files of a folder, return the URL that has them."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(
                    f"{prefix}/{file.relative_to(folder).as_posix()}".strip("/"), file.read_bytes()
                )
        return f"{self.url}/{prefix}".rstrip("/")

    def remove(self, path: str) -> None:
        MemoryFileSystem().rm_file(f"/{self._name}/{path}")

    def clear(self) -> None:
        """Remove everything."""
        fs = MemoryFileSystem()
        if fs.exists(f"/{self._name}"):
            fs.rm(f"/{self._name}", recursive=True)

    def asked(self, method: str, path: str, call: Callable[[], Any]) -> Any:
        with self._lock:
            self.requests[method] += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            self.before(method, path)
            return call()
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def memory_bucket() -> Iterator[MemoryBucket]:
    """Give an empty bucket."""
    bucket = MemoryBucket()
    with mock.patch.multiple(
        MemoryFileSystem,
        cat_file=_counted("cat_file", bucket),
        info=_counted("info", bucket),
        ls=_counted("ls", bucket),
    ):
        yield bucket
    bucket.clear()


def _counted(method: str, bucket: MemoryBucket) -> Callable[..., Any]:
    real = getattr(MemoryFileSystem, method)

    def ask(self: MemoryFileSystem, path: str, *args: Any, **kwargs: Any) -> Any:
        if getattr(_INSIDE, "yes", False):
            return real(self, path, *args, **kwargs)
        _INSIDE.yes = True
        try:
            return bucket.asked(method, path, lambda: real(self, path, *args, **kwargs))
        finally:
            _INSIDE.yes = False

    return ask


_INSIDE = threading.local()  # what an answer is made of is no request of its own
