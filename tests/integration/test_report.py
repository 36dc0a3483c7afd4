"""``siglip2-cache report``: a cache and a trained student, as a user reports on them."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.browser import Page, chromium_page, find_chromium
from kit.commands import error_line
from kit.reports import build_cache
from kit.trainings import make_cache, train_of

Command = Callable[..., tuple[int, str, str]]
CPU = ("--device", "cpu", "--decode-workers", 0, "--quiet")


@pytest.fixture(scope="module")
def run(
    tiny_checkpoint: Path, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished training of four steps, with its cache and corpus beside it."""
    root = tmp_path_factory.mktemp("report")
    made = make_cache(root, tiny_checkpoint)
    train_of(made.cache, tiny_student, root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    with chromium_page(chromium, tmp_path_factory.mktemp("profile")) as page:
        yield page


def reported(command: Command, *arguments: object) -> dict[str, Any]:
    status, out, err = command("report", *arguments, "--json", *CPU)
    assert (status, err) == (0, "")
    return json.loads(out)


def test_a_run_is_reported_with_its_figures_its_failures_and_its_corpus(
    command: Command, run: Path
) -> None:
    numbers = reported(command, run)
    assert list(numbers) == ["training", "evaluation", "outcomes", "corpus", "teachers", "notes"]
    written = json.loads((run / "evaluation.json").read_text())
    columns = numbers["evaluation"]["columns"]
    assert columns["student after"] == written["after"]
    for way, found in numbers["outcomes"].items():
        rates = [written[c]["retrieval"]["all"][way]["1"] for c in ("teacher", "after")]
        total = sum(found.values())
        right = [found["both"] + found[f"{name}_alone"] for name in ("teacher", "student")]
        assert [number / total for number in right] == pytest.approx(rates)
    bins = numbers["evaluation"]["calibration_bins"]
    assert bins.keys() == {"teacher", "student"}
    gallery = written["gallery"]
    assert sum(bins["student"]["pairs"]) == gallery["images"] * gallery["captions"]
    assert numbers["notes"] == []


def test_another_cache_is_evaluated_anew(command: Command, run: Path) -> None:
    cache = run.parent / "cache"
    numbers = reported(command, run, "--cache", cache, "--split", "all", "--samples", 20)
    assert numbers["evaluation"]["gallery"]["images"] == 20
    assert list(numbers["evaluation"]["columns"]) == ["teacher", "student"]
    status, out, _ = command("eval", run / "model", cache, "--split", "all", "--samples", 20, *CPU)
    assert status == 0
    assert f"{numbers['evaluation']['columns']['student']['image_cosine']:.4f}" in out


def test_a_teacher_other_than_that_of_the_run_is_evaluated_anew(
    command: Command, run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("run", "cache"):
        shutil.copytree(run.parent / name, tmp_path / name)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(run.parent), str(tmp_path)))
    build_cache(
        run.parent / "corpus",
        tmp_path / "cache",
        tiny_checkpoint,
        num_views=2,
        shard_rows=16,
        teacher_name="second",
    )
    stored = ["teacher", "student before", "student after"]
    for teacher, columns in (("tiny", stored), ("second", ["teacher", "student"])):
        numbers = reported(command, tmp_path / "run", "--teacher", teacher)
        assert list(numbers["evaluation"]["columns"]) == columns
        assert list(numbers["teachers"]) == [teacher]


@pytest.mark.parametrize("width", [1400, 360])
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_the_window_and_shows_every_chart(
    command: Command, run: Path, tab: Page, width: int, is_dark: bool
) -> None:
    html = run.parent / "report.html"
    if not html.exists():
        status, out, err = command("report", run, "--html", html, *CPU)
        assert (status, err) == (0, "")
        assert f"page       {html}" in out.splitlines()
    tab.events.clear()
    tab.look(width=width, is_dark=is_dark)
    tab.open(html)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shown = tab.evaluate(
        "Promise.all([...document.querySelectorAll('.charts img')].map(img => img.decode()"
        ".then(() => [img.naturalWidth, img.currentSrc === img.src])))"
    )
    assert len(shown) > 8
    assert all(pixels > 100 and is_light != is_dark for pixels, is_light in shown)
    assert tab.complaints() == []
    assert [url for url in tab.requests() if not url.startswith("data:")] == [html.as_uri()]


def test_a_mistake_is_one_line(command: Command, run: Path, tmp_path: Path) -> None:
    cache = run.parent / "cache"
    lines = {
        ("report", tmp_path / "gone"): "gone",
        ("report", cache, "--cache", cache): "--cache goes with the folder of a training",
        ("report", cache, "--html", tmp_path / "no" / "r.html"): "there is no folder",
        ("report", cache, "--open"): "--open goes with --html FILE",
        ("report", cache, "--samples", 1): "--samples must be at least 2, got 1",
        ("report", cache, "--teacher", "other"): "no teacher 'other'",
    }
    for arguments, words in lines.items():
        assert words in error_line(*command(*arguments)), arguments


def test_a_student_whose_images_are_gone_keeps_its_figures(
    command: Command, run: Path, tmp_path: Path
) -> None:
    corpus = run.parent / "corpus"
    moved = ("--corpus-root", f"{corpus}={tmp_path / 'gone'}")
    numbers = reported(command, run, *moved)
    assert "student after" in numbers["evaluation"]["columns"]
    assert "outcomes" not in numbers
    [note] = numbers["notes"]
    assert note.startswith("calibration and failures are missing: none of ")
