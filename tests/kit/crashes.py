"""Crashes on purpose: every file operation of the store counted, recorded, cut short or replayed.

store/io/local.py is the one place that writes to a cache, through the module ``os``. A Spy takes that
module's place there.
"""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siglip2_cache.store.io import local as store_files

_WRITING = os.O_WRONLY | os.O_RDWR


class Spy:
    """Stands for ``os`` in store/io/local.py and passes everything on."""

    def __init__(self) -> None:
        self.num_ops = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & _WRITING:
            return self._do("create", lambda: os.open(path, flags, mode), path, flags)
        return os.open(path, flags, mode)

    def write(self, descriptor: int, data: memoryview) -> int:
        return self._do("write", lambda: os.write(descriptor, data), descriptor, bytes(data))

    def fsync(self, descriptor: int) -> None:
        self._do("fsync", lambda: os.fsync(descriptor), descriptor)

    def rename(self, source: Any, target: Any) -> None:
        self._do("rename", lambda: os.rename(source, target), source, target)

    def link(self, source: Any, target: Any) -> None:
        self._do("link", lambda: os.link(source, target), source, target)

    def unlink(self, path: Any) -> None:
        self._do("unlink", lambda: os.unlink(path), path)

    def mkdir(self, path: Any) -> None:
        self._do("mkdir", lambda: os.mkdir(path), path)

    def _do(self, name: str, act: Any, *arguments: Any) -> Any:
        self.num_ops += 1
        return act()


class Killer(Spy):
    """Kills this process with SIGKILL at one operation, a write halfway through."""

    def __init__(self, kill_at: int) -> None:
        super().__init__()
        self._kill_at = kill_at

    def _do(self, name: str, act: Any, *arguments: Any) -> Any:
        self.num_ops += 1
        if self.num_ops == self._kill_at:
            if name == "write":
                descriptor, data = arguments
                os.write(descriptor, data[: len(data) // 2])
            elif self.num_ops % 2:
                with suppress(OSError):  # done or refused, it is the last
                    act()
            os.kill(os.getpid(), signal.SIGKILL)
        return act()


@contextmanager
def spying(spy: Spy) -> Iterator[Spy]:
    """Put a spy in the place of ``os`` in store/files.py."""
    store_files.os = spy  # type: ignore[assignment]
    try:
        yield spy
    finally:
        store_files.os = os


@dataclass
class Operation:
    name: str
    arguments: tuple[Any, ...]


class Recorder(Spy):
    """Keeps every operation, descriptors replaced by the paths they were opened for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        self.operations: list[Operation] = []

    def _do(self, name: str, act: Any, *arguments: Any) -> Any:
        paths = [self._relative(a) for a in arguments[: 2 if name in ("rename", "link") else 1]]
        rest = arguments[len(paths) :]
        result = act()  # an operation that fails is not recorded
        self.num_ops += 1
        self.operations.append(Operation(name, (*paths, *rest)))
        return result

    def _relative(self, path_or_descriptor: Any) -> str:
        if isinstance(path_or_descriptor, int):
            path_or_descriptor = os.readlink(f"/proc/self/fd/{path_or_descriptor}")
        return os.path.relpath(path_or_descriptor, self._root)


@dataclass
class Inode:
    """A file or a folder: what is in memory, and what has reached the disk."""

    is_folder: bool
    data: bytes = b""
    synced_data: bytes = b""
    entries: dict[str, "Inode"] = field(default_factory=dict)
    states: list[dict[str, "Inode"]] = field(default_factory=lambda: [{}])
    """The folder as it was synced last, and after each change since: a rename is one change."""


class Disk:
    """A disk in which only what was fsynced is sure to survive a power cut.

    Names and contents are lost or kept apart from each other, and so is each folder.
    """

    def __init__(self) -> None:
        self.root = Inode(is_folder=True)

    def apply(self, operation: Operation) -> None:
        getattr(self, f"_{operation.name}")(*operation.arguments)

    def survivors(self, chance: random.Random | None, *, keep_names: bool) -> dict[str, bytes]:
        """Return the files after a power cut.

        Nothing that was not synced (chance None, keep_names False); all names, but only synced
        contents (keep_names True); or a random part of both (chance given).
        """
        found: dict[str, bytes] = {}
        self._collect(self.root, "", found, chance, keep_names)
        return found

    def _collect(
        self,
        folder: Inode,
        prefix: str,
        found: dict[str, bytes],
        chance: random.Random | None,
        keep_names: bool,
    ) -> None:
        if chance is not None:
            entries = chance.choice(folder.states)
        else:
            entries = folder.states[-1 if keep_names else 0]
        for name, inode in sorted(entries.items()):
            if inode.is_folder:
                self._collect(inode, f"{prefix}{name}/", found, chance, keep_names)
            elif chance is None or inode.data == inode.synced_data:
                found[prefix + name] = inode.synced_data
            else:
                found[prefix + name] = inode.data[: chance.randrange(len(inode.data) + 1)]

    def _find(self, path: str) -> Inode:
        inode = self.root
        for part in Path(path).parts:
            if part != ".":
                inode = inode.entries[part]
        return inode

    def _change(self, path: str, inode: Inode | None, *, forget: str | None = None) -> None:
        folder = self._find(str(Path(path).parent))
        if inode is None:
            del folder.entries[Path(path).name]
        else:
            folder.entries[Path(path).name] = inode
        if forget is not None:
            del folder.entries[Path(forget).name]
        folder.states.append(dict(folder.entries))

    def _create(self, path: str, flags: int) -> None:
        folder, name = self._find(str(Path(path).parent)), Path(path).name
        if name not in folder.entries:
            self._change(path, Inode(is_folder=False))
        elif flags & os.O_TRUNC:
            folder.entries[name].data = b""

    def _write(self, path: str, data: bytes) -> None:
        self._find(path).data += data

    def _fsync(self, path: str) -> None:
        inode = self._find(path)
        inode.synced_data = inode.data
        inode.states = [dict(inode.entries)]

    def _rename(self, source: str, target: str) -> None:
        assert Path(source).parent == Path(target).parent, "renames stay in one folder"
        self._change(target, self._find(source), forget=source)

    def _link(self, source: str, target: str) -> None:
        self._change(target, self._find(source))

    def _unlink(self, path: str) -> None:
        self._change(path, None)

    def _mkdir(self, path: str) -> None:
        self._change(path, Inode(is_folder=True))
