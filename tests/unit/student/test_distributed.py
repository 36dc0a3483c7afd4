"""Two processes compute what one computes."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import processes, run_ranks
from kit.fakes import draw_image
from kit.run_ranks import SCENARIOS
from kit.steps import assert_same_gradients

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images, the second of which is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(5):
        draw_image(i).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def by_two(
    tiny_student: Path,
    naflex_student: Path,
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What the first of two processes found in every scenario."""
    out = tmp_path_factory.mktemp("ranks") / "found.pt"
    ran = processes.run(
        [sys.executable, run_ranks.__file__, tiny_student, naflex_student, pictures, out]
    )
    assert ran.returncode == 0, ran.stderr
    return torch.load(out, weights_only=False)


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_have_the_gradient_of_one(
    by_two: dict[str, Any], tiny_student: Path, naflex_student: Path, name: str
) -> None:
    scenario = SCENARIOS[name]
    student = naflex_student if scenario.is_naflex else tiny_student
    expected_loss, expected = run_ranks.first_gradient(scenario, student, None)
    loss, found = by_two[name]
    counts, expected_counts = (
        {count: float(value) for count, value in asdict(each.counts).items() if value is not None}
        for each in (loss, expected_loss)
    )
    assert counts == pytest.approx(expected_counts, rel=1e-12)
    assert loss.values == pytest.approx(expected_loss.values, rel=1e-9)
    assert loss.floors == pytest.approx(expected_loss.floors, rel=1e-9)
    assert loss.gradient_norms == pytest.approx(expected_loss.gradient_norms, rel=1e-9)
    assert_same_gradients(found, expected, 1e-9)


@pytest.mark.parametrize("name", ["uneven", "two pieces against one"])
def test_two_processes_have_the_loss_curve_of_one(
    by_two: dict[str, Any], tiny_student: Path, name: str
) -> None:
    curve = run_ranks.loss_curve(SCENARIOS[name], tiny_student, None)
    assert len(curve) == 20
    assert curve[-1] < 0.8 * curve[0]
    assert by_two[f"{name}, curve"] == pytest.approx(curve, rel=1e-5)


def test_two_processes_embed_a_share_of_the_batches_each_and_have_all_rows(
    by_two: dict[str, Any], tiny_student: Path, pictures: Path
) -> None:
    expected, found = run_ranks.embeddings(tiny_student, pictures, None), by_two["embeddings"]
    assert np.isfinite(expected.images_ND).all(axis=1).tolist() == [True, False, True, True, True]
    np.testing.assert_allclose(found.images_ND, expected.images_ND, rtol=1e-6)
    np.testing.assert_allclose(found.texts_MD, expected.texts_MD, rtol=1e-6)
    assert found.faults == expected.faults
    assert list(found.faults) == [1]
