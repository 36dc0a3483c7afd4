"""How long a test waits for what is sure to come: where much else runs it comes late, and only what hangs
never comes. Nothing is waited for by the clock alone."""

import time
from collections.abc import Callable

PATIENCE_S = 600.0
"""Less than pytest's own timeout, so that a test says what it waited for."""


def wait_until(is_so: Callable[[], object], what: str) -> None:
    """Return as soon as something is so.

    Args:
        is_so: says whether it is; asked every few milliseconds.
        what: named where it never is.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s in vain: {what}"
        time.sleep(0.005)
