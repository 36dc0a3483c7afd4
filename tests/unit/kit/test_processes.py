"""A forked process does what a new interpreter does: each program runs in both."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import processes
from kit.processes import Process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")

SEEN = """
import json, multiprocessing, os, signal, sys
streams = {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
print(json.dumps({
    "argv": sys.argv,
    "path": sys.path,
    "folder": os.getcwd(),
    "environment": dict(os.environ),
    "parent": os.getppid(),
    "groups": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()],
    "streams": {
        name: [s.fileno(), s.mode, s.encoding, s.errors, s.newlines, s.line_buffering, s.write_through]
        for name, s in streams.items()
    },
    "are the first": [getattr(sys, f"__{name}__") is s for name, s in streams.items()],
    "input": sys.stdin.read(),
    "open files": sorted(os.listdir("/proc/self/fd")),
    "threads": len(os.listdir("/proc/self/task")),
    "umask": os.umask(0),
    "signals": [str(signal.getsignal(n)).partition(" at ")[0] for n in (2, 10, 13, 15)],
    "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "name": __name__,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "file": globals().get("__file__"),
    "package": __package__,
    "module": getattr(__spec__, "name", None),
    "children": [len(multiprocessing.active_children()), multiprocessing.parent_process()],
    "ours": [name for name in sys.modules if name.startswith("siglip2_cache")],
}))
"""


def both(*arguments: Any, given: str | None = None, **options: Any) -> list[tuple[int, str, str]]:
    """Return exit status, stdout and stderr of a new interpreter and of a forked process."""
    command = [sys.executable, *map(str, arguments)]
    pipe = subprocess.PIPE
    options |= {"stdin": pipe, "stdout": pipe, "stderr": pipe}
    found: list[tuple[int, str, str]] = []
    for process in (
        subprocess.Popen(command, text=True, **options),
        Process(command, **options),
    ):
        out, err = process.communicate(given)
        found.append((process.returncode, out, err))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "seen.py").write_text(SEEN)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def interrupt() -> Iterator[None]:
    """SIGINT is taken, as in the foreground; in the background and by pytest-xdist it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("is_interrupt_ignored", [True, False])
@pytest.mark.parametrize("given", [None, "a line\nand more"])
@pytest.mark.parametrize("is_leader", [True, False])
@pytest.mark.parametrize("program", ["-c", "-m", "script"])
def test_a_program_sees_the_same(
    program: str, is_leader: bool, given: str | None, is_interrupt_ignored: bool, folder: Path
) -> None:
    if is_interrupt_ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    arguments, cwd = {
        "-c": (["-c", SEEN], folder / "elsewhere"),
        "-m": (["-m", "package.seen"], folder),
        "script": (["package/seen.py"], folder),
    }[program]
    env = {**os.environ, "RANK": "1", "AWS_REGION": "caf\udce9"}
    plain, forked = both(
        *arguments, "a", "-b", given=given, cwd=cwd, env=env, start_new_session=is_leader
    )
    assert (forked[0], forked[2]) == (plain[0], plain[2]) == (0, "")
    assert json.loads(forked[1]) == json.loads(plain[1])


def test_a_program_from_its_input_sees_the_same(folder: Path) -> None:
    plain, forked = both("-", "a", "-b", given=SEEN, cwd=folder, env={**os.environ})
    assert (forked[0], forked[2]) == (plain[0], plain[2]) == (0, "")
    assert json.loads(forked[1]) == json.loads(plain[1])


ENDS = {
    "its end": "print('ends')",
    "exit": "import sys; sys.exit()",
    "exit 3": "import sys; sys.exit(3)",
    "exit -1": "import sys; sys.exit(-1)",
    "exit with a text": "import sys; sys.exit('a text')",
    "an exit of the system": "import os; print('lost'); os._exit(7)",
    "SIGKILL": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "handlers": "import atexit; atexit.register(print, 'one'); atexit.register(print, 'two')",
    "a thread": "import threading, time; "
    "threading.Thread(target=lambda: (time.sleep(0.1), print('of a thread'))).start()",
}


@pytest.mark.parametrize("program", ENDS.values(), ids=ENDS)
def test_a_program_ends_the_same(program: str) -> None:
    plain, forked = both("-c", program)
    assert forked == plain


@pytest.mark.parametrize(
    ("program", "status", "last_line"),
    [
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        (
            "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1); print('lost', flush=True)",
            1,
            "BrokenPipeError: [Errno 32] Broken pipe",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
            -signal.SIGINT,
            "KeyboardInterrupt",
        ),
    ],
)
def test_an_error_is_a_traceback_that_begins_here(
    program: str, status: int, last_line: str
) -> None:
    for found, out, err in both("-c", program):
        assert (found, out, err.splitlines()[0]) == (
            status,
            "",
            "Traceback (most recent call last):",
        )
        assert err.splitlines()[-1] == last_line


def test_a_program_starts_processes_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, sys\n"
        "def work(number): return number, __name__, 'torch' in sys.modules\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'forkserver'):\n"
        "        with multiprocessing.get_context(method).Pool(1) as pool:\n"
        "            print(pool.map(work, range(2)))\n"
        "    os.chdir('/')\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(work, range(2)))\n"
    )
    plain, forked = both("script.py", cwd=tmp_path)
    assert forked == plain
    assert forked[1].count("[(0, '__mp_main__', False), (1, '__mp_main__', False)]") == 3


def test_it_is_a_child_of_ours_that_we_can_kill() -> None:
    command = [sys.executable, "-c", "import sys; print('started', flush=True); sys.stdin.read()"]
    with Process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_a_program_whose_environment_libraries_would_read_starts_anew() -> None:
    command = [sys.executable, "-c", "import sys; print('torch' in sys.modules)"]
    imported = {"KMP_INIT_AT_FORK": "FALSE", "TORCHINDUCTOR_CACHE_DIR": "/tmp/x"}  # set by imports
    assert processes.run(command, env={**os.environ, **imported}).stdout == "True\n"
    other = {**os.environ, "OMP_NUM_THREADS": "2"}
    assert processes.run(command, env=other).stdout == "False\n"
