"""A server that has imported what takes seconds and forks a Python process for each request.

python fork_server.py DESCRIPTOR: the socket of requests (processes.py), each with the streams of its process.
The server computes nothing and starts no thread, which a fork would lose.

A forked process returns from ``serve`` and runs its program at the end of this file, so it ends as every
interpreter does: what is registered for the exit runs, and an error that nothing catches is a traceback.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import multiprocessing.process
import os
import runpy
import signal
import socket
import sys
import types
from pathlib import Path
from typing import Any

_LIBRARIES = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "safetensors.torch",
    "torch",
    "transformers.models.siglip.modeling_siglip",
    "transformers.models.siglip2.modeling_siglip2",
    "typer",
    "zarr",
)
"""Nothing of siglip2_cache: each process imports it anew. Nor polars and pyarrow, which start threads."""

MOST_BYTES = 2**17
"""Of a request; Linux queues some 200 kB."""

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1)
"""Those that a process ignores if the one that starts it does: in the background SIGINT is one."""

status: int | None = None
"""What this process exits with; None where the interpreter finds it."""


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork a process for each request; return, in that process, the request."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a library has started a thread"
    gc.freeze()  # a collection in a process copies none of its memory
    requests.send(b"ready")
    while True:
        message, streams, _, _ = socket.recv_fds(requests, MOST_BYTES, 3)
        if not message:
            sys.exit()  # whoever asked has ended
        if (between := os.fork()) == 0:
            break
        for stream in streams:
            os.close(stream)
        os.waitpid(between, 0)
    # A process whose parent has ended gets the one that asked for it as its parent.
    between = os.getpid()
    if os.fork() != 0:
        os._exit(0)
    while os.getppid() == between:
        os.sched_yield()
    requests.send(str(os.getpid()).encode())
    requests.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return json.loads(message)


def become(process: dict[str, Any]) -> None:
    """Be what a new interpreter is that was started so."""
    if process["start_new_session"]:
        os.setsid()
    for number in SIGNALS:
        is_ignored, own = number in process["ignored"], signal.SIG_DFL
        if number == signal.SIGINT:
            own = signal.default_int_handler
        signal.signal(number, signal.SIG_IGN if is_ignored else own)
    os.chdir(process["cwd"])
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()
    os.environ.clear()
    os.environ.update(process["env"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        _open_stream(number, name)


def _open_stream(number: int, name: str) -> None:
    before, mode = getattr(sys, name), "wb" if number else "rb"
    is_unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    buffering = 0 if is_unbuffered and number else -1
    file: Any = open(number, mode, buffering, closefd=False)  # noqa: SIM115
    stream: Any = io.TextIOWrapper(
        file,
        encoding=before.encoding,
        errors=before.errors,
        newline="\n" if number else None,
        line_buffering=not is_unbuffered and (file.isatty() or number == 2),
        write_through=is_unbuffered,
    )
    stream.mode = before.mode
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def run(arguments: list[str]) -> None:
    """Run a program as ``python ARGUMENTS`` does."""
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path[0] = ""
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    elif arguments[0] == "-":
        sys.argv = arguments
        sys.path[0] = ""
        main.__file__ = "<stdin>"
        with open(0, closefd=False) as file:
            program = file.read()
        exec(compile(program, main.__file__, "exec"), main.__dict__)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        main.__file__ = os.path.abspath(arguments[0])
        exec(compile(Path(arguments[0]).read_bytes(), main.__file__, "exec"), main.__dict__)


def leave() -> None:
    """End without clearing the memory, which takes half a second."""
    if status is None:
        return
    with contextlib.suppress(Exception):  # which the interpreter meets again, and tells
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 0xFF)


if __name__ == "__main__":
    atexit.register(leave)  # what is registered first runs last
    process = serve(socket.socket(fileno=int(sys.argv[1])))
    become(process)
    try:
        run(process["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except Exception:
        status = 1
        raise
