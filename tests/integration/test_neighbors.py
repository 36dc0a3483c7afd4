"""siglip2-cache neighbors, duplicates, mismatched, outliers and agreement, as a user meets them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.commands import error_line, run
from kit.fakes import config_of, draw_image, write_folder_corpus
from kit.patience import PATIENCE_S

from siglip2_cache import open_cache
from siglip2_cache.precompute.build import build, load_teacher
from siglip2_cache.siglip import resolve_checkpoint

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images with two captions each, embedded by a real tiny teacher."""
    root = tmp_path_factory.mktemp("neighbors")
    write_folder_corpus(root / "corpus", 7, captions=2)
    (root / "corpus" / "img006.png").write_bytes(b"<html>")
    build(config_of(root / "corpus", root / "cache", tiny_checkpoint, shard_rows=4))
    return root / "cache"


def found(command: Command, *arguments: object) -> Any:
    status, out, err = command(*arguments, "--json")
    assert (status, err) == (0, ""), err
    return json.loads(out)


def test_a_key_gives_a_list_of_one_query_and_its_neighbours(command: Command, cache: Path) -> None:
    [one] = found(command, "neighbors", cache, "--key", "img003", "-k", 99)
    assert one["query"]["key"] == "img003"
    assert {each["key"] for each in one["neighbors"]} == {f"img{i:03d}" for i in (0, 1, 2, 4, 5)}
    cosines = [each["cosine"] for each in one["neighbors"]]
    assert cosines == sorted(cosines, reverse=True)
    assert one["neighbors"][0]["captions"]


def test_the_table_shows_cosines_keys_and_captions(command: Command, cache: Path) -> None:
    status, out, _ = command("neighbors", cache, "--key", "img003", "-k", 2)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "1 query among 6 images, exact; 1 without an embedding left out"
    assert lines[2] == "query  img003  Picture 3  (+1)"
    assert [line.split()[0] for line in lines[3:]] == ["1", "2"]
    assert all(line == line.rstrip() and len(line) <= 120 for line in lines)


def test_a_new_text_and_a_new_picture_are_embedded_by_the_teacher_of_the_cache(
    command: Command, cache: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    draw_image(99).save(tmp_path / "new.png")
    text, picture = found(
        command,
        "neighbors",
        cache,
        "--text",
        "Something NEW",
        "--image",
        tmp_path / "new.png",
        "-k",
        99,
    )
    assert text["query"]["text"] == "Something NEW"
    assert picture["query"]["image"] == str(tmp_path / "new.png")
    teacher = load_teacher(resolve_checkpoint(str(tiny_checkpoint)), "cpu", "float32")
    embedding = teacher.embed_texts(["Something NEW"])().astype(np.float64)[0]
    targets = open_cache(cache).image_targets()
    rows = [each["row"] for each in text["neighbors"]]
    expected = targets.read(rows).astype(np.float64) @ embedding
    np.testing.assert_allclose([e["cosine"] for e in text["neighbors"]], expected, atol=2e-3)


def test_a_text_of_the_cache_and_all_else_that_is_there_loads_no_model(cache: Path) -> None:
    picture = cache.parent / "corpus" / "img001.png"
    queries = cache.parent / "queries.jsonl"
    queries.write_text(
        '{"text": "Picture 3"}\n{"key": "img002"}\n' + json.dumps({"image": str(picture)}) + "\n"
    )
    program = (
        "import sys; from siglip2_cache.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers'}))"
    )
    searches = (
        ["neighbors", cache, "--queries", queries],
        *([name, cache] for name in ("duplicates", "mismatched", "outliers")),
    )
    for search in searches:
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, search)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == "[]"


def test_a_teacher_whose_weights_are_others_is_refused(
    command: Command, cache: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_checkpoint("tiny-patch16-64", tmp_path / "other", dtype="float32", seed=9)
    said = command("neighbors", cache, "--text", "new", "--checkpoint", other)
    assert "is not the checkpoint that teacher" in error_line(*said)


def test_an_index_answers_as_exact_search_does(
    command: Command, cache: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(cache, tmp_path / "cache")
    copy = tmp_path / "cache"
    said = command("neighbors", copy, "--key", "img001", "--approximate")
    assert "has no index at indexes/tiny/image.faiss" in error_line(*said)
    assert command("index", copy)[0] == 0
    exact = found(command, "neighbors", copy, "--key", "img001", "-k", 3)
    assert found(command, "neighbors", copy, "--key", "img001", "-k", 3, "--approximate") == exact


def test_every_report_is_json_with_its_counts(command: Command, cache: Path) -> None:
    doubled = found(command, "duplicates", cache, "--above", 0.99)
    assert doubled["images"] == 6
    assert "clusters" in doubled
    assert found(command, "mismatched", cache, "--limit", 2)["pairs"] == 12
    assert len(found(command, "outliers", cache, "--limit", 2)["outliers"]) == 2


def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    command: Command, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "siglip2_cache.neighbors.nearest", None)
    said = command("neighbors", cache, "--html", cache / "none" / "page.html")
    assert "there is no folder" in error_line(*said)


def test_a_page_is_written_beside_json_and_opened_where_there_is_a_browser(
    command: Command, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda uri: bool(opened.append(uri)))
    page = tmp_path / "page.html"
    status, out, err = command("neighbors", cache, "--json", "--html", page, "--open")
    assert status == 0
    assert len(json.loads(out)) == 5
    assert opened == [page.as_uri()]
    assert err == f"no web browser was found; open {page} in one\n"
    assert page.read_text().startswith("<!doctype html>")


def test_a_page_of_a_corpus_that_has_gone_says_so_in_the_terminal(
    command: Command, cache: Path, tmp_path: Path
) -> None:
    root = [f"{cache.parent / 'corpus'}={tmp_path / 'gone'}"]
    page = tmp_path / "page.html"
    status, out, _ = command(
        "neighbors", cache, "--key", "img001", "-k", 2, "--html", page, "--corpus-root", *root
    )
    assert status == 0
    assert out.splitlines()[-3:] == [
        f"page       {page}",
        "note       of 3 pictures: 3 unreadable now",
        "note       no picture can be read; if the corpus has moved, add --corpus-root OLD=NEW",
    ]


def test_a_student_is_compared_as_a_second_teacher(
    command: Command, cache: Path, tiny_student: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(cache, tmp_path / "cache")
    build(
        config_of(cache.parent / "corpus", tmp_path / "cache", tiny_student, teacher_name="student")
    )
    compared = found(
        command,
        "agreement",
        tmp_path / "cache",
        "--teacher",
        "tiny",
        "--against",
        "student",
        "-k",
        2,
    )
    assert compared["teachers"] == ["tiny", "student"]
    assert 0 <= compared["overlap"] <= 1
    assert compared["images"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["neighbors", "--key", "a", "--sample", "9"], "leave one out"),
        (["neighbors", "--open"], "--open goes with --html FILE"),
        (["neighbors", "--row", "99999999999999999999"], "row 99999999999999999999 is not in"),
        (["neighbors", "--row", "999"], "row 999 is not in"),
        (["neighbors", "--row", "6"], "was rejected by"),
        (["neighbors", "--queries", "/no/such/file"], "queries /no/such/file cannot be read"),
        (["neighbors", "--among", "words"], "--among must be images or texts, got 'words'"),
        (["duplicates", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["duplicates", "--above", "2"], "--above must be a cosine, -1 to 1, got 2"),
        (["outliers", "-k", "0"], "-k must be at least 1, got 0"),
        (["agreement", "--teacher", "tiny", "--against", ""], "no teacher ''"),
        (["agreement", "--teacher", "tiny", "--against", "nobody"], "no teacher 'nobody'"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(
    command: Command, cache: Path, arguments: list[str], message: str
) -> None:
    name, *options = arguments
    assert message in error_line(*command(name, cache, *options))


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["neighbors", "--duplicates"], "--duplicates"),
        (["neighbors", "--above", "0.9"], "--above"),
        (["duplicates", "--approximate"], "--approximate"),
        (["duplicates", "-k", "3"], "-k"),
        (["mismatched", "--among", "texts"], "--among"),
        (["mismatched", "--key", "a"], "--key"),
        (["outliers", "--include-self"], "--include-self"),
        (["outliers", "--sample", "9"], "--sample"),
        (["agreement", "--checkpoint", "x"], "--checkpoint"),
    ],
)
def test_a_command_takes_only_its_own_options(
    command: Command, cache: Path, arguments: list[str], option: str
) -> None:
    name, *options = arguments
    status, out, err = command(name, cache, *options)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: no such option: {option}")


def test_captions_that_would_move_the_cursor_do_not(
    command: Command, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    write_folder_corpus(tmp_path / "corpus", 3)
    (tmp_path / "corpus" / "img001.txt").write_text("up \x1b[2J and away [bold] 猫猫猫" * 20)
    build(config_of(tmp_path / "corpus", tmp_path / "cache", tiny_checkpoint))
    status, out, _ = command("neighbors", tmp_path / "cache", "--key", "img000")
    assert status == 0
    assert "\x1b" not in out
    assert "up \\x1b[2J and away [bold] 猫" in out


def test_the_command_runs_from_a_shell(cache: Path) -> None:
    done = run("neighbors", cache, "--sample", 1, "-k", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "1 query among 6 images, exact; 1 without an embedding left out\n"
    )
