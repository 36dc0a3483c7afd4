"""The examples run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kit.documents import CHECKOUT
from kit.patience import PATIENCE_S


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of jupyter_client
def test_the_notebook_runs_and_shows_a_plot_in_every_part(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(CHECKOUT / "examples" / "quickstart.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=PATIENCE_S, resources=resources).execute()
    shown = [
        output["data"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "data" in output
    ]
    assert sum("image/png" in data for data in shown) == 5
    assert (tmp_path / "quickstart" / "distilled" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_term_of_ones_own_is_trained_and_compared(tmp_path: Path) -> None:
    command = [sys.executable, CHECKOUT / "examples" / "custom_objective.py", "out"]
    done = subprocess.run(
        [*command, "--images", "60", "--steps", "3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=PATIENCE_S,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    _, *rows = done.stdout.splitlines()
    assert [re.split(r"  +", row)[0] for row in rows] == ["without the term", "with the term"]
    assert "image_structure 0." in done.stderr
