"""Which files, folders and tables say what the images of a folder show."""

import json
import unicodedata
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.findings import Findings
from siglip2_cache.precompute.planning.plan import make_plan
from siglip2_cache.precompute.sources import (
    Problem,
    Sample,
    TableColumns,
    Unused,
    open_source,
)
from siglip2_cache.precompute.sources.fields.caption_endings import parse_endings
from siglip2_cache.precompute.sources.folder import FolderSource
from siglip2_cache.store.io.local import LocalStorage


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"pixels")


def samples_of(root: Path) -> list[Sample]:
    return [entry for entry in FolderSource(root).scan() if isinstance(entry, Sample)]


def problems_of(root: Path) -> list[Problem]:
    found = [entry for entry in FolderSource(root).scan() if isinstance(entry, Problem)]
    return [entry for entry in found if not isinstance(entry, Unused)]


def notes_of(root: Path) -> list[tuple[int, str]]:
    found = [each for each in FolderSource(root).scan() if isinstance(each, Unused)]
    return sorted((each.count, each.reason) for each in found)


def captions_of(root: Path) -> list[tuple[str, str | None]]:
    """Captions of a folder with one image."""
    (sample,) = samples_of(root)
    return [(caption.text, caption.lang) for caption in sample.captions]


@pytest.mark.parametrize("name", ["a.caption", "a.CAP", "a.text", "a.jpg.txt", "a.caption.txt"])
def test_other_usual_endings_hold_captions_too(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / name).write_text("a dog")
    assert [[c.text for c in s.captions] for s in samples_of(tmp_path)] == [["a dog"], []]


def test_a_text_of_an_image_of_another_kind_is_not_taken(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "a.png")
    (tmp_path / "a.png.txt").write_text("the png")
    found = {s.path: [c.text for c in s.captions] for s in samples_of(tmp_path)}
    assert found == {"a.jpg": [], "a.png": ["the png"]}


def test_endings_that_are_told_are_all_taken_and_no_others(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("no")
    (tmp_path / "a.blip").write_text("of blip")
    (tmp_path / "a.syn.json").write_text('{"syn_text": ["one", "two"], "caption": "no"}')
    endings = parse_endings([".BLIP", "syn.json"])
    columns = TableColumns(captions=("syn_text",))
    source = open_source(tmp_path, caption_endings=endings, columns=columns)
    [sample] = [each for each in source.scan() if isinstance(each, Sample)]
    assert [c.text for c in sample.captions] == ["of blip", "one", "two"]
    assert source.settings == {"caption_endings": ["blip", "syn.json"], "captions": ["syn_text"]}


@pytest.mark.parametrize("ending", ["", ".", "a/b", " ", ".jpg", "a b"])
def test_an_ending_that_is_none_is_refused(ending: str) -> None:
    with pytest.raises(SettingError, match="caption ending"):
        parse_endings([ending])


@pytest.mark.parametrize("image_form", ["NFC", "NFD"])
def test_an_accent_may_be_written_in_two_ways(
    tmp_path: Path, image_form: Literal["NFC", "NFD"]
) -> None:
    image, text = ("NFC", "NFD") if image_form == "NFC" else ("NFD", "NFC")
    put(tmp_path, unicodedata.normalize(image, "Käfer.jpg"))
    (tmp_path / unicodedata.normalize(text, "Käfer.txt")).write_text("a beetle")
    assert captions_of(tmp_path) == [("a beetle", None)]


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("a.jpg", "captions/a.txt"),
        ("images/a.jpg", "captions/a.txt"),
        ("train/images/x/a.jpg", "train/captions/x/a.json"),
        ("train/images/a.jpg", "captions/train/images/a.txt"),
        ("cats/a.jpg", "text/cats/a.txt"),
    ],
)
def test_captions_may_lie_in_a_folder_of_their_own(tmp_path: Path, image: str, text: str) -> None:
    put(tmp_path, image)
    (tmp_path / text).parent.mkdir(parents=True)
    (tmp_path / text).write_text('"a dog"' if text.endswith("json") else "a dog")
    assert captions_of(tmp_path) == [("a dog", None)]
    assert problems_of(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        pytest.param(["images/a.jpg"], ["captions/a.txt", "texts/a.txt"], id="two folders"),
        pytest.param(["images/a.jpg", "photos/b.jpg"], ["captions/a.txt"], id="of which images"),
        pytest.param(["images/a.jpg", "captions/z.jpg"], ["captions/a.txt"], id="holds images"),
        pytest.param(["images/a.jpg"], ["labels/a.txt"], id="boxes"),
    ],
)
def test_a_folder_of_captions_is_not_guessed(
    tmp_path: Path, names: list[str], texts: list[str]
) -> None:
    put(tmp_path, *names)
    for text in texts:
        (tmp_path / text).parent.mkdir(exist_ok=True)
        (tmp_path / text).write_text("0 0.5 0.5 0.1 0.1")
    assert [s.captions for s in samples_of(tmp_path)] == [()] * len(names)
    [note] = notes_of(tmp_path)
    assert note == (len(texts), "texts that are named like no image beside them")


def test_texts_that_nobody_reads_are_counted_by_ending_with_what_takes_them(tmp_path: Path) -> None:
    put(tmp_path, *(f"{i}.jpg" for i in range(4)), "0.txt")
    (tmp_path / "0.txt").write_text("a dog")
    for i in range(4):
        (tmp_path / f"{i}.blip").write_text("a dog on grass")
        (tmp_path / f"{i}.bin").write_bytes(b"\0\1\2")
    assert notes_of(tmp_path) == [
        (3, "files ending in .bin, not read as images"),
        (3, "files ending in .blip that hold text, beside images"),
    ]
    [blip] = [
        n for n in FolderSource(tmp_path).scan() if isinstance(n, Unused) and "blip" in n.reason
    ]
    assert blip.remedy == "--caption-ending .blip uses them as captions"


YOLO = "0 0.716797 0.395833 0.216406 1e-05\n1 0.5 0.5 0.2 0.2\n"


def test_lines_without_a_letter_are_no_captions_unless_their_ending_is_told(tmp_path: Path) -> None:
    put(tmp_path, "0.jpg", "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "0.txt").write_text(YOLO)
    (tmp_path / "1.txt").write_text(YOLO + "2 dogs\n")
    (tmp_path / "2.txt").write_text("犬\n12\n")
    (tmp_path / "3.txt").write_text("7")
    (tmp_path / "3.caption").write_text("a cat")
    found = [[c.text for c in s.captions] for s in samples_of(tmp_path)]
    assert found == [[], ["2 dogs"], ["犬"], ["a cat"]]
    notes = [n for n in FolderSource(tmp_path).scan() if isinstance(n, Unused)]
    assert [(n.place, n.reason, n.count, n.remedy) for n in notes] == [
        (
            f"{tmp_path}/0.txt",
            "lines of files ending in .txt without a letter, such as labels of YOLO",
            6,
            "--caption-ending .txt uses them as captions",
        )
    ]
    told = list(open_source(tmp_path, caption_endings=("txt",)).scan())
    numbers = [len(s.captions) for s in told if isinstance(s, Sample)]
    assert numbers == [2, 3, 2, 1]
    assert not [n for n in told if isinstance(n, Unused) and "letter" in n.reason]


def test_a_table_among_images_without_captions_is_named(tmp_path: Path) -> None:
    put(tmp_path, "Images/a.jpg", "captions.csv")
    assert notes_of(tmp_path) == [(1, "tables among the images, not read")]


# --- imagefolder


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif path.suffix == ".csv":
        pl.DataFrame(rows).write_csv(path)
    else:
        pl.DataFrame(rows).write_parquet(path)


def texts_of(root: Path) -> dict[str, list[str]]:
    return {sample.key: [c.text for c in sample.captions] for sample in samples_of(root)}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("folder", ["", "train/"])
def test_a_table_beside_images_says_what_they_show(tmp_path: Path, kind: str, folder: str) -> None:
    put(tmp_path, f"{folder}x.jpg", f"{folder}sub/y.jpg", f"{folder}z.jpg")
    rows: list[dict[str, object]] = [
        {"file_name": "x.jpg", "text": "one", "label": "dog"},
        {"file_name": "./sub/y.jpg", "text": "two", "label": None},
        {"file_name": "x.jpg", "text": "three", "label": "dog"},
    ]
    write_table(tmp_path / f"{folder}metadata.{kind}", rows)
    assert texts_of(tmp_path) == {
        f"{folder}x": ["one", "three"],
        f"{folder}z": [],
        f"{folder}sub/y": ["two"],
    }
    assert samples_of(tmp_path)[0].label == "dog"
    assert problems_of(tmp_path) == []


def test_the_nearest_table_counts_and_a_text_beside_an_image_fills_its_gaps(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg", "train/c.jpg", "test/d.jpg")
    rows: list[dict[str, object]] = [
        {"file_name": "a.jpg", "text": "of the table"},
        {"file_name": "b.jpg", "text": None},
        {"file_name": "train/c.jpg", "text": "of afar"},
        {"file_name": "test/d.jpg", "text": "of afar"},
    ]
    write_table(tmp_path / "metadata.jsonl", rows)
    write_table(tmp_path / "train/metadata.csv", [{"file_name": "c.jpg", "text": "of near"}])
    (tmp_path / "a.txt").write_text("no")
    (tmp_path / "b.txt").write_text("beside")
    assert texts_of(tmp_path) == {
        "a": ["of the table"],
        "b": ["beside"],
        "test/d": ["of afar"],
        "train/c": ["of near"],
    }


def test_several_images_of_a_row_are_told_by_any_file_name_column(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    row: dict[str, object] = {"left_file_name": "a.jpg", "right_file_name": "b.jpg", "prompt": "p"}
    write_table(tmp_path / "metadata.jsonl", [row])
    assert texts_of(tmp_path) == {"a": ["p"], "b": ["p"]}


def test_what_is_wrong_with_such_a_table_is_a_problem_and_the_images_stay(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    table = tmp_path / "metadata.jsonl"
    table.write_text('{"file_name": "a.jpg", "text": "a dog"}\n{\n{"file_name": "gone.jpg"}\n')
    assert texts_of(tmp_path) == {"a": ["a dog"]}
    line, gone = problems_of(tmp_path)
    assert line.place == f"{table} line 2"
    assert (gone.place, gone.reason) == (
        str(table),
        "1 images that it names are not in its folder: gone.jpg",
    )
    for text, reason in (("", "is empty"), ('{"x": 1}', "has no column file_name")):
        table.write_text(text)
        assert texts_of(tmp_path) == {"a": []}
        [problem] = problems_of(tmp_path)
        assert (problem.place, problem.reason[: len(reason)]) == (str(table), reason)


def test_a_column_of_such_a_table_can_be_told(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    row: dict[str, object] = {"file_name": "a.jpg", "text": "no", "remark": "yes"}
    write_table(tmp_path / "metadata.jsonl", [row])
    source = open_source(tmp_path, columns=TableColumns(captions=("remark",)))
    [sample] = [each for each in source.scan() if isinstance(each, Sample)]
    assert [c.text for c in sample.captions] == ["yes"]


def test_a_changed_table_or_caption_changes_the_fingerprint(tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg")
    seen = {FolderSource(tmp_path).fingerprint()}
    write_table(tmp_path / "metadata.jsonl", [{"file_name": "images/a.jpg", "text": "one"}])
    seen.add(FolderSource(tmp_path).fingerprint())
    write_table(tmp_path / "metadata.jsonl", [{"file_name": "images/a.jpg", "text": "other"}])
    seen.add(FolderSource(tmp_path).fingerprint())
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions/a.txt").write_text("a dog")
    seen.add(FolderSource(tmp_path).fingerprint())
    assert len(seen) == 4


# --- as a plan keeps it


def plan_of(cache: Path, *sources: Path, **settings: Any) -> Findings:
    config = PlanConfig(sources=tuple(map(str, sources)), **settings)
    return make_plan(config, LocalStorage(cache)).findings


def test_endings_that_were_told_are_those_of_every_later_plan(tmp_path: Path) -> None:
    corpus, cache = tmp_path / "corpus", tmp_path / "cache"
    put(corpus, "a.jpg")
    (corpus / "a.blip").write_text("a dog")
    (corpus / "a.txt").write_text("no")
    assert plan_of(cache, corpus, caption_endings=(".blip",)).num_captions == 1
    put(corpus, "b.jpg")
    (corpus / "b.blip").write_text("a cat")
    found = plan_of(cache, corpus)
    assert (found.num_samples, found.num_captions) == (1, 1)
    opened = open_cache(cache)
    assert opened.texts().collect()["text"].to_list() == ["a dog", "a cat"]
    assert opened.manifest.latest.sources[0].settings == {"caption_endings": ["blip"]}


def test_endings_of_a_resume_that_differ_are_compared(tmp_path: Path) -> None:
    corpus, cache = tmp_path / "corpus", tmp_path / "cache"
    put(corpus, "a.jpg")
    (corpus / "a.blip").write_text("a dog")
    (corpus / "a.txt").write_text("other")
    plan_of(cache, corpus, caption_endings=("blip",))
    with pytest.raises(SettingError, match="caption"):
        plan_of(cache, corpus, caption_endings=("txt",))


def test_endings_for_a_table_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "t.jsonl", [{"image": "a.jpg", "caption": "x"}])
    with pytest.raises(
        SettingError, match=r"--caption-ending txt is for folders .*t.jsonl is neither"
    ):
        plan_of(tmp_path / "cache", tmp_path / "t.jsonl", caption_endings=("txt",))


def test_a_corpus_without_captions_is_told_where_they_were_looked_for(tmp_path: Path) -> None:
    put(tmp_path / "corpus", "a.jpg")
    [note] = plan_of(tmp_path / "cache", tmp_path / "corpus").notes
    assert note.line() == (
        "images without a caption, which is all of them: 1; looked for .json, .txt, .caption, .cap, .text, "
        ".caption.txt or .jpg.txt beside each or in a folder captions/; metadata.csv, .jsonl, .parquet; "
        "--caption-ending takes other endings"
    )
