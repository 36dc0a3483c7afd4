"""The wheel holds the whole package and works where no checkout is in reach.

The root folder of the checkout is the package, and pyproject.toml names each sub-package by hand:
what is forgotten there is missing from the wheel alone, and no other test would notice.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import InstalledWheel

CHECKOUT = Path(__file__).parents[2]
NOT_IN_THE_WHEEL = {"benchmarks", "build", "dist", "docs", "examples", "tests"}


@pytest.fixture
def empty_folder(tmp_path: Path) -> Path:
    return tmp_path


def test_the_wheel_holds_every_file_of_the_package_and_no_other(
    installed_wheel: "InstalledWheel",
) -> None:
    names = zipfile.ZipFile(installed_wheel.wheel).namelist()
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == {f"siglip2_cache/{path}" for path in _package_files()}


def test_the_wheel_carries_the_licence(installed_wheel: "InstalledWheel") -> None:
    [licence] = installed_wheel.site.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (CHECKOUT / "LICENSE").read_bytes()


def test_every_package_can_be_imported_from_the_wheel(
    installed_wheel: "InstalledWheel", empty_folder: Path
) -> None:
    packages = [_import_name(path) for path in _package_files() if path.name == "__init__.py"]
    code = (
        "import importlib, json, sys\n"
        "modules = [importlib.import_module(name) for name in sys.argv[1:]]\n"
        "print(json.dumps([module.__file__ for module in modules]))"
    )
    files = _run(installed_wheel, empty_folder, sys.executable, "-c", code, *packages)
    assert packages
    for file in json.loads(files):
        assert Path(file).is_relative_to(installed_wheel.site)


def test_the_command_explains_itself(installed_wheel: "InstalledWheel", empty_folder: Path) -> None:
    script = installed_wheel.site / "bin" / "siglip2-cache"
    output = _run(installed_wheel, empty_folder, sys.executable, str(script), "--help")
    for command in ("build", "verify", "info"):
        assert command in output


def test_a_page_can_be_made_from_the_wheel(
    installed_wheel: "InstalledWheel", empty_folder: Path
) -> None:
    code = (
        "from pathlib import Path\n"
        "from siglip2_cache.neighbors.page import render_page\n"
        "from siglip2_cache.neighbors.report import Report\n"
        "report = Report(title='Nothing', cache=Path('c'), teachers=(), summary=(), groups=())\n"
        "print(''.join(render_page(report, {})))"
    )
    page = _run(installed_wheel, empty_folder, sys.executable, "-c", code)
    assert page.startswith("<!doctype html>")
    assert "prefers-color-scheme" in page  # its style
    assert "IntersectionObserver" in page  # its script


def test_help_imports_nothing_heavy(installed_wheel: "InstalledWheel", empty_folder: Path) -> None:
    code = (
        "import json, sys\n"
        "from siglip2_cache.cli import main\n"
        "sys.argv = ['siglip2-cache', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print()\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    output = _run(installed_wheel, empty_folder, sys.executable, "-c", code)
    *help_lines, imported = output.splitlines()
    assert any("siglip2-cache" in line for line in help_lines)
    heavy = {
        "PIL",
        "faiss",
        "fsspec",
        "numpy",
        "polars",
        "pyarrow",
        "torch",
        "transformers",
        "zarr",
    }
    assert heavy.isdisjoint(json.loads(imported))


def _package_files() -> Iterator[Path]:
    """Every file of the package, relative to the checkout.

    Of the root folder the modules; of a folder with modules anywhere below it everything, so
    that a forgotten __init__.py and a forgotten data file count as missing.
    """
    yield from (path.relative_to(CHECKOUT) for path in CHECKOUT.glob("*.py"))
    yield Path("py.typed")
    for folder in CHECKOUT.iterdir():
        is_hidden = folder.name.startswith(".")
        if is_hidden or folder.name in NOT_IN_THE_WHEEL or not any(folder.rglob("*.py")):
            continue
        for path in folder.rglob("*"):
            if path.is_file() and path.parent.name != "__pycache__":
                yield path.relative_to(CHECKOUT)


def _import_name(init_file: Path) -> str:
    return ".".join(("siglip2_cache", *init_file.parent.parts))


def _run(installed_wheel: "InstalledWheel", cwd: Path, *command: str) -> str:
    """What a command prints that finds the installed wheel, and this checkout nowhere."""
    # Safe path: neither the working folder nor the script's own is searched. The folder named
    # in PYTHONPATH comes before the finder that the editable install of the checkout adds.
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(installed_wheel.site)}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
