"""The package as a user gets it: built into a wheel and installed away from the checkout."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


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
