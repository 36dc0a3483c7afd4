"""The package as a user gets it: its commands, and its wheel installed away from the checkout."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from siglip2_cache.cli import main

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command that needs no model in this process; (exit status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["siglip2-cache", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary folder of a short name, for what is cut where it is long: messages, above all."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder).resolve()


@dataclass(frozen=True)
class InstalledWheel:
    wheel: Path
    """The .whl file."""

    site: Path
    """A folder that holds the installed wheel and nothing else."""


@pytest.fixture(scope="session")
def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> InstalledWheel:
    """The wheel of this checkout, installed alone into an empty folder; needs no network."""
    work = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools packs whatever an earlier build left in build/, modules since
    # deleted included.
    left_out = (".*", "build", "dist", "*.egg-info", "__pycache__")
    source = work / "source"
    shutil.copytree(CHECKOUT, source, ignore=shutil.ignore_patterns(*left_out))
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", work / "dist", source)
    [wheel] = (work / "dist").glob("*.whl")
    _pip("install", "--no-deps", "--no-index", "--target", work / "site", wheel)
    return InstalledWheel(wheel=wheel, site=work / "site")


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
