"""The command line as a user meets it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kit import processes
from kit.patience import PATIENCE_S

_PROGRESS = (
    *("planning ", "loading ", "reading ", "hashing ", "warning: ", "images ", "texts "),
    "see docs/",
)


def run(
    *arguments: object, cwd: Path | None = None, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own; ``before`` is called in it first."""
    command = [sys.executable, "-m", "siglip2_cache.cli", *map(str, arguments)]
    if before is None:
        return processes.run(command, cwd=cwd)
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=PATIENCE_S, preexec_fn=before
    )


def error_line(status: int, out: str, err: str) -> str:
    """Return the one line, without ``error:``, that a refused command leaves on stderr."""
    shown = f"{status} {out!r} {err!r}"
    assert (status, out) == (1, ""), shown
    [line] = [line for line in err.splitlines() if not line.startswith(_PROGRESS)]
    assert line.startswith("error: "), shown
    assert line.isprintable(), shown
    message = line.removeprefix("error: ")
    assert not message.endswith("."), shown
    return message
