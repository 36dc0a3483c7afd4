"""What tests of every part share."""

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from kit.s3 import S3

    from tests.foreign_cache import ForeignCache

_ROOT = Path(__file__).resolve().parents[1]

# Tiny models are slower in several threads, which wait busily for each other: where the cores have more
# to do, ten times as slow. And rounding is the same on every machine. It holds for every process that a
# test starts, and must stand before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

# Where no bytecode is kept, each process that a test starts compiles the package anew, half a second, and
# each run of the tests compiles all of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A collection of garbage looks at all objects of the libraries, half a second each time: those that are there
# when the tests begin stay, and are left out.
gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from now on, without what has been imported."""
    gc.freeze()
    gc.enable()


# The same examples in every run, and no clock: a busy machine finds no fault.
settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def _own_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the memory of sha256 sums out of the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """The function of benchmarks/make_checkpoint.py, which is not part of a package."""
    return _load("benchmarks/make_checkpoint.py").make_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A loadable float32 SigLIP 2 checkpoint, 64 px and width 64; read it, do not change it."""
    return make_checkpoint(
        "tiny-patch16-64", tmp_path_factory.mktemp("teachers") / "tiny", dtype="float32"
    )


@pytest.fixture(scope="session")
def naflex_checkpoint(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A loadable float32 NaFlex checkpoint, width 64; read it, do not change it."""
    return make_checkpoint(
        "tiny-patch16-naflex", tmp_path_factory.mktemp("teachers") / "naflex", dtype="float32"
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: tiny models are slower in several, and rounding is the same
    on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_student(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of 32 px and width 32, one layer; read it, do not change it."""
    from kit.students import write_student

    return write_student(tiny_checkpoint, tmp_path_factory.mktemp("students") / "tiny")


@pytest.fixture(scope="session")
def naflex_student(naflex_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NaFlex student of at most 16 patches and width 32, one layer; read it, do not change it."""
    from kit.students import write_student

    return write_student(naflex_checkpoint, tmp_path_factory.mktemp("students") / "naflex")


@pytest.fixture(scope="session")
def _s3_server() -> "Iterator[S3]":
    from kit.s3 import started

    with started() as server:
        yield server


@pytest.fixture
def s3(_s3_server: "S3", monkeypatch: pytest.MonkeyPatch) -> "Iterator[S3]":
    """An S3 with an empty bucket of the test's own, healthy, for every client in this process and in
    those that it starts; see tests/kit/s3.py."""
    from s3fs import S3FileSystem

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    _s3_server.reset()
    S3FileSystem.clear_instance_cache()  # they know listings and keep connections
    yield _s3_server
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def load_benchmark() -> Callable[[str], ModuleType]:
    """Load a file of benchmarks/ by its name."""

    def load(name: str) -> ModuleType:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(_ROOT / "benchmarks"))  # its neighbours, which it imports
            return _load(f"benchmarks/{name}.py")

    return load


@pytest.fixture(scope="session")
def write_foreign_cache() -> Callable[..., "ForeignCache"]:
    """The function of tests/foreign_cache.py: a small cache, written without our writer."""
    return _load("tests/foreign_cache.py").write_foreign_cache


@pytest.fixture(scope="session")
def foreign(
    write_foreign_cache: Callable[..., "ForeignCache"], tmp_path_factory: pytest.TempPathFactory
) -> "ForeignCache":
    """A finished foreign cache and what it holds; read it, do not change it."""
    return write_foreign_cache(tmp_path_factory.mktemp("foreign") / "cache")


@pytest.fixture(scope="session")
def foreign_cache(foreign: "ForeignCache") -> Path:
    """The folder of the foreign cache; read it, do not change it."""
    return foreign.root


def _load(path: str) -> ModuleType:
    """A Python file that is part of no package."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, _ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
