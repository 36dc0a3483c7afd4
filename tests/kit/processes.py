"""Python processes that start with large libraries imported: in 0.1 s, not in 3.

A server (fork_server.py), one for each process of tests, forks them. They are otherwise what ``subprocess``
starts: children of whoever asks, with arguments, streams, environment and folder of their own. Tests of what
is imported, of memory, or of bytes that must not depend on the seed of hashes use ``subprocess``.
"""

import atexit
import ctypes
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from kit import fork_server
from kit.patience import PATIENCE_S

_PR_SET_CHILD_SUBREAPER = 36

_OPTIONS = {"cwd", "env", "stdin", "stdout", "stderr", "start_new_session"}
"""Those of Popen that the server knows."""

_READ_LATE = (
    "AWS_",
    "KMP_",  # set as scikit-learn is imported, read by an OpenMP that is not torch's
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_",
    "PYTEST_",
    "RANK",
    "SIGLIP2_CACHE_",
    "TORCHELASTIC_",
    "TORCHINDUCTOR_CACHE_DIR",  # set as transformers is imported
    "WORLD_SIZE",
)
"""Beginnings of the variables that no library reads as it is imported."""


def run(
    command: Sequence[object],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: IO[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``sys.executable`` with arguments to its end, and return what it printed."""
    pipe = subprocess.PIPE
    with Process(command, cwd=cwd, env=env, stdin=stdin, stdout=pipe, stderr=pipe) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class Process(subprocess.Popen[str]):
    """A process of ``sys.executable``, its streams texts; forked where that makes no difference."""

    def __init__(self, command: Sequence[object], **options: Any) -> None:
        env = dict(os.environ if options.get("env") is None else options["env"])
        self._request: dict[str, Any] | None = None
        if sys.platform == "linux" and set(options) <= _OPTIONS and _server().fits(env):
            assert command[0] == sys.executable
            self._request = {
                "arguments": [*map(str, command[1:])],
                "cwd": str(options.get("cwd") or Path.cwd()),
                "env": env,
                "start_new_session": options.get("start_new_session", False),
                "ignored": [
                    number
                    for number in fork_server.SIGNALS
                    if signal.getsignal(number) == signal.SIG_IGN
                ],
            }
        super().__init__([*map(str, command)], text=True, **options)

    def _execute_child(self, *given: Any) -> None:
        if self._request is None:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        pipes = given[
            10:16
        ]  # of stdin the child's end and ours, of stdout and stderr the other way
        ends = (pipes[0], pipes[3], pipes[5])
        streams = [number if end == -1 else end for number, end in enumerate(ends)]
        self.pid = _server().fork(self._request, streams)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class _Server:
    def __init__(self) -> None:
        self._env = _read_early(os.environ)
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, fork_server.__file__, str(number)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[number],
            )
        atexit.register(self._stop)
        self._answer()

    def fits(self, env: Mapping[str, str]) -> bool:
        """Return whether the libraries that it has imported would be the same in this environment."""
        return _read_early(env) == self._env

    def fork(self, request: dict[str, Any], streams: list[int]) -> int:
        """Return the id of a new child of this process."""
        _adopt_orphans(True)
        try:
            socket.send_fds(self._requests, [json.dumps(request).encode()], streams)
            return int(self._answer())
        finally:
            _adopt_orphans(False)

    def _answer(self) -> bytes:
        answer = self._requests.recv(fork_server.MOST_BYTES)
        assert answer, "the server of processes has ended"
        return answer

    def _stop(self) -> None:
        self._requests.close()
        self._process.wait()


@functools.cache
def _server() -> _Server:
    return _Server()


def _read_early(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(_READ_LATE)}


def _adopt_orphans(is_so: bool) -> None:
    """Let this process be the parent of its descendants whose own parent ends, or not."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(is_so), 0, 0, 0)
