"""Files that may not be read, also where the tests are run by root, who may read everything."""

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kit import processes

_NOBODY = 65_534

_CAPABILITIES = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root read and list any file (Linux)."""

GIVE_UP_PRIVILEGES = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); "
    "from kit.privileges import give_up_privileges; give_up_privileges()"
)
"""What a process runs first in which, and in whose children, permissions count for root too."""


def give_up_privileges() -> None:
    """Drop what lets root read any file, from this process and from the programs that it starts."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def check(status: int, name: str) -> None:
        if status != 0:
            raise OSError(ctypes.get_errno(), name)

    for capability in _CAPABILITIES:
        check(libc.prctl(24, capability, 0, 0, 0), "prctl")  # PR_CAPBSET_DROP
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then those above 31
    check(libc.capget(header, sets), "capget")
    for i in range(3):
        sets[i] &= ~sum(1 << capability for capability in _CAPABILITIES)
    check(libc.capset(header, sets), "capset")


def can_give_up_privileges(closed: Path) -> bool:
    """Return whether a process that has given them up may not list a closed folder."""
    program = f"import os; os.listdir({str(closed)!r})"
    before = f"{GIVE_UP_PRIVILEGES}; print('given up', flush=True)"
    done = processes.run([sys.executable, "-c", f"{before}; {program}"])
    return done.stdout == "given up\n" and "PermissionError" in done.stderr


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may look into; pytest's own are shut to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Be nobody where we are root; skip, saying so, where nobody may not look into the folder."""
    import pytest

    if os.getuid() != 0:
        yield
        return
    if not hasattr(os, "setresuid"):
        pytest.skip("root may read everything, and cannot drop that here")
    os.setresuid(_NOBODY, _NOBODY, 0)
    try:
        if not os.access(folder, os.R_OK | os.X_OK):
            pytest.skip(f"nobody may not look into {folder}, and root may read everything")
        yield
    finally:
        os.setresuid(0, 0, 0)
