"""A cache opens on any laptop: without torch, transformers and what only they need."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import siglip2_cache

if TYPE_CHECKING:
    from .conftest import InstalledWheel

ABSENT = ("huggingface_hub", "safetensors", "tokenizers", "torch", "transformers")


@pytest.fixture(scope="module")
def site_without_torch(
    installed_wheel: "InstalledWheel", tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A site-packages folder: this environment's, less what a reader of a cache need not have."""
    site = tmp_path_factory.mktemp("site")
    # torch brings functorch and torchgen along; a .pth file or finder would lead to the checkout.
    left_out = (*ABSENT, "functorch", "siglip2_cache", "__editable__", "__pycache__")
    for kind in ("purelib", "platlib"):
        for entry in Path(sysconfig.get_path(kind)).iterdir():
            link = site / entry.name
            if not entry.name.startswith(left_out) and not link.is_symlink():
                link.symlink_to(entry)
    (site / "siglip2_cache").symlink_to(installed_wheel.site / "siglip2_cache")
    return site


def test_the_site_really_lacks_them(site_without_torch: Path) -> None:
    code = (
        "import importlib.util, json, siglip2_cache\n"
        f"found = [name for name in {ABSENT!r} if importlib.util.find_spec(name)]\n"
        "print(json.dumps([siglip2_cache.__file__, found]))"
    )
    file, found = json.loads(_run(site_without_torch, code))
    assert Path(file).is_relative_to(site_without_torch)
    assert found == []


def test_a_cache_is_read_without_torch(site_without_torch: Path, foreign_cache: Path) -> None:
    code = (
        "import json, sys\n"
        "from siglip2_cache import open_cache\n"
        "cache = open_cache(sys.argv[1])\n"
        "samples = cache.samples().collect()\n"
        "target = cache.image_targets().read([0])\n"
        "print(json.dumps([samples['key'].to_list(), str(target.dtype), target.tolist()]))"
    )
    keys, dtype, target = json.loads(_run(site_without_torch, code, str(foreign_cache)))

    cache = siglip2_cache.open_cache(foreign_cache)
    assert keys == cache.samples().collect()["key"].to_list()
    assert dtype == "float16"
    np.testing.assert_array_equal(
        np.array(target, dtype=np.float16), cache.image_targets().read([0])
    )


def test_the_command_describes_a_cache_without_torch(
    site_without_torch: Path, foreign_cache: Path
) -> None:
    code = (
        "import sys\n"
        "from siglip2_cache.cli import main\n"
        "sys.argv = ['siglip2-cache', 'info', '--json', sys.argv[1]]\n"
        "main()"
    )
    assert json.loads(_run(site_without_torch, code, str(foreign_cache)))


def _run(site: Path, code: str, *arguments: str) -> str:
    """What a program prints that finds the standard library and ``site``, and nothing else."""
    # -S leaves out the environment's site-packages, -I the working folder and PYTHONPATH.
    code = f"import sys; sys.path.append({str(site)!r})\n{code}"
    command = [sys.executable, "-I", "-S", "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
