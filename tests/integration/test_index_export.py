"""The commands index and export as a user runs them; no model is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from kit.commands import error_line, run
from kit.vectors import draw_vectors, write_vectors

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(foreign_cache: Path, tmp_path: Path) -> Path:
    """A copy of the foreign cache."""
    return shutil.copytree(foreign_cache, tmp_path / "cache")


def test_an_index_is_made_once_shown_and_proved(command: Command, root: Path) -> None:
    status, out, err = command("index", root, "--among", "texts", "--json")
    found = json.loads(out)
    assert status == 0, err
    assert (found["kind"], found["rows"], found["was_there"]) == ("flat", 12, False)
    assert found["recall"]["value"] == found["cross"]["recall"]["value"] == 1.0
    assert Path(found["file"]) == root / "indexes/tiny/text.faiss"
    status, out, _ = command("index", root, "--among", "texts")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (status, lines["made"]) == (0, "it was there already")
    assert lines["holds"].startswith("flat (IDMap,SQfp16), 12 rows, ")
    _, out, _ = command("info", root)
    assert "           text index: flat (IDMap,SQfp16), 12 rows, " in out
    status, out, _ = command("verify", root)
    assert (status, out.splitlines()[-1]) == (0, "verified: no fault")


def test_a_larger_one_says_what_it_finds_in_a_process_of_its_own(tmp_path: Path) -> None:
    root = write_vectors(tmp_path / "cache", {"image": draw_vectors(3000)})
    done = run("index", root, "--kind", "ivf")
    assert done.returncode == 0, done.stderr
    assert "nprobe " in done.stdout
    assert "measured   by 500 images of the cache, against exact search" in done.stdout
    assert ", recall of texts not measured" in done.stdout
    assert done.stderr == "ivf index IVF76,SQfp16: as asked\n"  # not a warning of faiss


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "lsh"), "kind must be one of auto, flat, ivf, ivfpq, hnsw, got 'lsh'"),
        (("--kind", "ivfpq"), "kind ivfpq learns its codes from at least 9,984 rows, there are 16"),
        (("--among", "words"), "--among must be images or texts, got 'words'"),
        (("--view", "2"), "view 2 is not in"),
        (("--teacher", "huge"), "no teacher 'huge' in"),
    ],
)
def test_what_cannot_be_indexed_is_said_in_a_line(
    command: Command, root: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert error_line(*command("index", root, *arguments)).startswith(message)


def test_exports_are_written_and_told_of(command: Command, root: Path, tmp_path: Path) -> None:
    status, out, err = command("export", "embeddings", root, tmp_path / "tables")
    assert status == 0, err
    assert out.splitlines()[1].startswith("images     16 in images.parquet, ")
    assert out.splitlines()[1].endswith("; left out: 3 rejected")
    status, out, _ = command(
        "export", "embeddings", root, tmp_path / "arrays", "--format", "npy", "--json"
    )
    files = json.loads(out)["parts"][1]["files"]
    assert [Path(file).name for file in files] == ["texts.npy", "texts.parquet"]
    tables = pl.read_parquet(tmp_path / "tables/texts.parquet")
    np.testing.assert_array_equal(np.load(files[0]), tables["embedding"].to_numpy())
    status, out, _ = command("export", "embeddings", root, tmp_path / "atlas", "--format", "atlas")
    assert out.splitlines()[-1].startswith("show       embedding-atlas ")


def test_an_export_that_cannot_be_is_said_in_a_line(
    command: Command, root: Path, tmp_path: Path
) -> None:
    assert error_line(*command("export", "embeddings", root, tmp_path)).startswith(
        f"{tmp_path} exists; name"
    )
    line = error_line(*command("export", "embeddings", root, tmp_path / "x", "--format", "csv"))
    assert line == "format must be one of parquet, npy, atlas, clip-retrieval, got 'csv'"
