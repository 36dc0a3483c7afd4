"""Standard streams that are closed, or whose reader is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(code: str, redirect: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = f'exec "$0" -c "$1" {redirect}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable, code], cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize("redirect", ["2>&-", "2>&- <&-", "2>/dev/full"])
def test_work_goes_on_without_a_standard_error(redirect: str, tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from siglip2_cache.streams import open_missing_streams, say_on_stderr\n"
        "open_missing_streams()\n"
        "with open('data', 'w') as file:\n"  # would be descriptor 2
        "    say_on_stderr('a'); say_on_stderr('b'); os.system('echo c >&2'); file.write('d')\n"
        "print('done'); sys.exit(3)\n"
    )
    found = run(code, redirect, tmp_path)
    assert (found.returncode, found.stdout) == (3, "done\n")
    assert (tmp_path / "data").read_text() == "d"


def test_a_reader_of_standard_error_that_is_gone_does_not_end_the_work(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "from siglip2_cache.streams import say_on_stderr as say\nsay('a'); say('b'); print('done')\n"
    found = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=writing,
        cwd=tmp_path,
        text=True,
    )
    os.close(writing)
    assert (found.returncode, found.stdout) == (0, "done\n")
