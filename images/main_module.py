"""Starting processes without the script of the user."""

import contextlib
import sys
import threading
import types
from collections.abc import Generator

_MAIN_LOCK = threading.RLock()


@contextlib.contextmanager
def hide_main_module() -> Generator[None]:
    """Hide the script of the user from multiprocessing, which would import it in every worker.

    That would take seconds if it imports torch, and start another build if it has no ``__main__`` guard.
    One thread at a time: two loaders would take each other's replacement for the script.
    """
    with _MAIN_LOCK:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
