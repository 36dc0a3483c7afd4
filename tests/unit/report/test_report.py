"""A report of a cache or of a run: its numbers, its notes, and its page, which asks for nothing."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from kit.evaluations import embeddings
from kit.fakes import draw_image, write_table_corpus
from kit.reports import build_cache
from numpy.typing import NDArray

from siglip2_cache.errors import NotACacheError, SettingError
from siglip2_cache.report.config import FullReportConfig
from siglip2_cache.report.page import write_report
from siglip2_cache.report.report import FullReport, find_run, make_report
from siglip2_cache.report.section import Section, count_table, section_lines
from siglip2_cache.store.cache import Cache
from siglip2_cache.student.evaluation.embeddings import Embeddings

HOSTILE = (
    "</script><script>alert(1)</script><img src=http://x.org/a.png onerror=alert(1)> $\\frac{$"
)
NUM_IMAGES = 12


class Parsed(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in two classes and languages, one a copy, one damaged; hostile texts."""
    root = tmp_path_factory.mktemp("corpus")
    lines: list[dict[str, Any]] = [
        {
            "image": f"{i:02d}.png",
            "key": f"k{i:02d}",
            "caption_en": [f"picture {i} {HOSTILE}"],
            "caption_de": [f"Bild {i}"] if i % 2 else [],
            "label": HOSTILE if i < 3 else "plain",
        }
        for i in range(NUM_IMAGES)
    ]
    for i in range(NUM_IMAGES):
        draw_image(i, (32 + i, 16)).save(root / f"{i:02d}.png")
    shutil.copyfile(root / "00.png", root / "01.png")
    (root / "02.png").write_bytes(b"no picture")
    return write_table_corpus(root, lines)


@pytest.fixture(scope="module")
def cache(corpus: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("caches") / "cache"
    build_cache(corpus, root, tiny_checkpoint, shard_rows=4, teacher_name="first")
    return root


@pytest.fixture(scope="module")
def found(cache: Path) -> FullReport:
    return make_report(FullReportConfig(cache=cache))


def page_of(report: FullReport, path: Path) -> str:
    write_report(report, path)
    return path.read_text("utf-8")


def test_the_numbers_are_those_of_the_corpus(found: FullReport) -> None:
    numbers = json.loads(json.dumps(found.values()))
    corpus, teacher = numbers["corpus"], numbers["teachers"]["first"]
    assert (corpus["samples"], corpus["captions"]) == (12, 18)
    assert corpus["sizes"]["images"] == 11
    assert corpus["sizes"]["short_side"]["median"] == 16
    assert corpus["sizes"]["aspect"]["p95"] == pytest.approx(40 / 16)
    assert corpus["copies"] == 1
    assert corpus["languages"] == {"en": 12, "de": 6}
    [reason] = corpus["rejected"]
    assert (reason["count"], reason["first"]) == (1, "k02")
    assert reason["reason"].startswith("rejected by first: ")
    assert corpus["near_duplicates"]["images"] == 11
    assert teacher["own"]["pairs"] == teacher["other"]["pairs"] == 17
    assert teacher["embedded"] == {"image": [11, 12], "text": [18, 18]}
    assert teacher["map"]["images"] == 11
    assert 0 < sum(teacher["map"]["explained"]) <= 1
    assert numbers["notes"] == []


def test_the_terminal_has_the_same_in_words(found: FullReport) -> None:
    lines = [line for section in found.sections for line in section_lines(section)]
    words = "\n".join(lines)
    assert "equal bytes           1 copy among 11 images" in words
    assert re.search(r"own captions +probability [\d.e-]+ \(median\); \d+ of 17 pairs", words)
    assert "\x1b" not in words


def test_the_terminal_says_how_many_rows_of_a_table_it_leaves_out() -> None:
    counts = {f"language {i}": 1 for i in range(50)}
    for most in (5, 20):
        table = count_table("Captions", "code", counts, most=most)
        lines = list(section_lines(Section(name="n", title="t", tables=[table])))
        assert lines[-1] == f"    {50 - min(most, 12)} more"
        assert sum("language " in line for line in lines) == min(most, 12)
    table = count_table("Captions", "code", counts, most=50)
    whole = Section(name="n", title="t", tables=[replace(table, shares=())])
    assert not any("more" in line for line in section_lines(whole))


def test_a_text_without_an_embedding_is_nearest_to_no_image(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opposite(
        _: Cache, teacher: str, rows_N: NDArray[np.int64], text_rows_M: NDArray[np.int64]
    ) -> Embeddings:
        images, texts = np.tile([1, 0], (len(rows_N), 1)), np.tile([-1.0, 0], (len(text_rows_M), 1))
        texts[0] = np.nan
        return embeddings(images.astype(np.float32), texts.astype(np.float32))

    monkeypatch.setattr("siglip2_cache.report.teacher.teacher_embeddings", opposite)
    groups = make_report(FullReportConfig(cache=cache)).sections[1].groups
    assert groups
    assert {item.cosine for group in groups for item in group.items} == {-1.0}


def test_the_page_asks_for_nothing_and_nothing_of_the_corpus_is_markup(
    found: FullReport, tmp_path: Path
) -> None:
    html = page_of(found, tmp_path / "report.html")
    page = Parsed(html)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "xlink:href", "poster", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert [a.get("id") for tag, a in page.elements if tag == "script"] == [
        "items",
        "pictures",
        None,
    ]
    [policy] = [a["content"] for tag, a in page.elements if "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert page.text.count("onerror=alert(1)") > 5  # as text
    assert not re.search(r"@import|url\(", html)
    images = [a for tag, a in page.elements if tag == "image"]
    assert len(images) > 3
    charts = [a for tag, a in page.elements if tag == "source"]
    assert {a["media"] for a in charts} == {"(prefers-color-scheme: dark)"}
    assert len(charts) == 5  # sizes, aspects, captions, lengths, probabilities


def test_equal_caches_give_equal_pages(found: FullReport, cache: Path, tmp_path: Path) -> None:
    again = make_report(FullReportConfig(cache=cache))
    assert page_of(again, tmp_path / "a.html") == page_of(found, tmp_path / "b.html")


def test_a_corpus_that_is_gone_is_said_and_the_numbers_stay(
    cache: Path, corpus: Path, tmp_path: Path
) -> None:
    moved = FullReportConfig(cache=cache, corpus_roots={str(corpus.parent): str(tmp_path / "gone")})
    report = make_report(moved)
    html = page_of(report, tmp_path / "report.html")
    page = Parsed(html)
    assert "no picture can be read; if the corpus has moved, add --corpus-root" in page.text
    assert "No image can be read." in page.text
    assert not [a for tag, a in page.elements if tag == "image"]
    assert report.values()["corpus"]["sizes"]["images"] == 11


def test_kept_pixels_stand_in_for_a_corpus_that_is_gone(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "corpus"
    shutil.copytree(corpus.parent, moved)
    build_cache(
        moved / "captions.jsonl", tmp_path / "cache", tiny_checkpoint, keep_pixels=32, num_views=2
    )
    shutil.rmtree(moved)
    html = page_of(
        make_report(FullReportConfig(cache=tmp_path / "cache")), tmp_path / "report.html"
    )
    page = Parsed(html)
    assert len([a for tag, a in page.elements if tag == "image"]) > 3
    assert "unreadable now" not in page.text


def test_a_cache_without_captions_says_what_is_missing(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lines = [{"image": f"{i}.png", "key": f"k{i}"} for i in range(4)]
    table = write_table_corpus(tmp_path / "corpus", lines)
    build_cache(table, tmp_path / "cache", tiny_checkpoint)
    report = make_report(FullReportConfig(cache=tmp_path / "cache"))
    words = "\n".join(line for section in report.sections for line in section_lines(section))
    assert "probabilities need images with a caption; there are none" in words
    assert page_of(report, tmp_path / "report.html")


def test_each_teacher_of_a_cache_has_a_part_or_the_one_that_is_named(
    cache: Path, corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    both = tmp_path / "cache"
    shutil.copytree(cache, both)
    build_cache(corpus, both, tiny_checkpoint, teacher_name="second")
    report = make_report(FullReportConfig(cache=both))
    assert [section.title for section in report.sections] == [
        "The corpus",
        "The teacher: first",
        "The teacher: second",
    ]
    assert list(report.values()["teachers"]) == ["first", "second"]
    named = make_report(FullReportConfig(cache=both, teacher="second"))
    assert list(named.values()["teachers"]) == ["second"]


def test_a_cache_without_a_teacher_says_so(cache: Path, tmp_path: Path) -> None:
    planned = tmp_path / "cache"
    shutil.copytree(cache, planned, ignore=shutil.ignore_patterns("teachers"))
    report = make_report(FullReportConfig(cache=planned))
    [section] = report.sections
    assert section.notes == [
        "no teacher has embedded anything yet; run the same siglip2-cache build again"
    ]
    assert report.values()["corpus"]["captions"] == 18
    assert page_of(report, tmp_path / "report.html")


def test_a_sample_bounds_what_is_compared(cache: Path) -> None:
    numbers = make_report(FullReportConfig(cache=cache, samples=5, examples=0)).values()
    assert numbers["teachers"]["first"]["images"] == 5
    assert numbers["corpus"]["near_duplicates"]["images"] == 5
    assert numbers["corpus"]["sizes"]["images"] == 11  # these are counted whole


# -- runs


def write_run(root: Path, cache: Path, *, num_steps: int = 20) -> Path:
    """A run without a model, as a training that was stopped leaves it."""
    root.mkdir()
    settings = {"cache": str(cache), "student": "student", "out": str(root), "steps": 40}
    settings |= {"global_batch_size": 8, "resolved": {"teacher": "first", "weights": {"soft": 1.0}}}
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    draw = np.random.default_rng(0)
    lines: list[dict[str, Any]] = [
        {"step": i + 1, "loss": 2.0, "soft": float(draw.random()), "soft_floor": 0.1}
        | {"soft_gradient_norm": 1.0, "skipped": i == 3}
        for i in range(num_steps)
    ]
    lines[4] = {"step": 5, "nonfinite_keys": ["k01"]}
    lines[9]["eval_mean_r1"] = 0.25
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_an_unfinished_run_shows_its_curves_and_says_what_is_missing(
    cache: Path, tmp_path: Path
) -> None:
    report = make_report(FullReportConfig(cache=None, run=write_run(tmp_path / "run", cache)))
    training = report.values()["training"]
    assert (training["steps"], training["wanted_steps"]) == (20, 40)
    assert (training["nonfinite_steps"], training["skipped_images"]) == (1, 1)
    assert not training["is_finished"]
    assert [chart.title for chart in report.sections[0].charts] == [
        "soft",
        "Share of the gradient",
        "R@1, mean of both ways",
    ]
    assert report.notes == (
        "calibration and failures need the finished student; run the same train again",
    )
    assert [section.name for section in report.sections] == ["training", "corpus", "teachers"]
    assert page_of(report, tmp_path / "report.html")


def test_every_teacher_of_a_run_has_a_part(cache: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", cache)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["resolved"]["teacher"] = {"first": 0.7, "gone": 0.3}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    [note] = make_report(FullReportConfig(cache=None, run=run)).notes
    assert "no teacher 'gone'" in note
    settings["resolved"]["teacher"] = {"first": 1.0}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    report = make_report(FullReportConfig(cache=None, run=run))
    assert report.teachers == ("first",)


def test_a_run_whose_cache_is_gone_shows_its_own_files(tmp_path: Path) -> None:
    report = make_report(
        FullReportConfig(cache=None, run=write_run(tmp_path / "run", tmp_path / "gone"))
    )
    assert [section.name for section in report.sections] == ["training"]
    [note] = report.notes
    assert note.startswith("the cache of the training cannot be read, name it with --cache (")
    assert note.split("(")[1] in page_of(report, tmp_path / "report.html").replace("&#39;", "'")


def test_a_cache_that_is_named_and_not_there_is_refused(cache: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", cache)
    with pytest.raises(NotACacheError):
        make_report(FullReportConfig(cache=tmp_path / "gone", run=run))


def test_a_run_is_told_from_a_cache(cache: Path, tmp_path: Path) -> None:
    assert find_run(str(cache)) is None
    assert find_run(str(tmp_path)) is None
    assert find_run("s3://bucket/cache") is None
    with pytest.raises(SettingError, match=r"^no run and no cache at \S+/rum: there is no such"):
        find_run(str(tmp_path / "rum"))
    run = write_run(tmp_path / "run", cache)
    assert find_run(str(run)) == run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "--samples must be at least 2, got 1"),
        ({"examples": -1}, "--examples must be at least 0, got -1"),
        ({"split": "test"}, "--split must be one of val, train, all, got 'test'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        FullReportConfig(cache=Path("c"), **settings)
