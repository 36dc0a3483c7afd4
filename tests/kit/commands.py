"""The command line as a user meets it."""

import subprocess
import sys
from pathlib import Path

from kit import processes

_PROGRESS = (
    *("planning ", "loading ", "reading ", "hashing ", "warning: ", "images ", "texts "),
    "see docs/",
)


def run(
    *arguments: object, cwd: Path | None = None, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own; ``before`` is Python that runs in it first."""
    program = ["-m", "siglip2_cache.cli"]
    if before:
        program = ["-c", f"{before}\nfrom siglip2_cache.cli import main\nmain()"]
    return processes.run([sys.executable, *program, *arguments], cwd=cwd)


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
