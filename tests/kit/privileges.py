"""Files that may not be read, also where the tests are run by root, who may read everything."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NOBODY = 65_534


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may look into; pytest's own are shut to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Be nobody where we are root; skip, saying so, where nobody may not look into the folder."""
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
