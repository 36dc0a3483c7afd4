"""FolderSource: images, their captions and classes, and everything that can be wrong with them."""

import json
import os
import re
from pathlib import Path

import pytest

from siglip2_cache.errors import SettingError, SourceError
from siglip2_cache.precompute.sources.fields.columns import TableColumns
from siglip2_cache.precompute.sources.folder import FolderSource
from siglip2_cache.precompute.sources.open import open_source
from siglip2_cache.precompute.sources.samples import Caption, Problem, Sample, Unused


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"pixels")


def samples_of(root: Path) -> list[Sample]:
    return [entry for entry in FolderSource(root).scan() if isinstance(entry, Sample)]


def problems_of(root: Path) -> list[Problem]:
    return [entry for entry in FolderSource(root).scan() if isinstance(entry, Problem)]


def captions_of(root: Path) -> list[tuple[str, str | None]]:
    """Captions of a folder with one image."""
    (sample,) = samples_of(root)
    return [(caption.text, caption.lang) for caption in sample.captions]


def test_images_of_every_kind_come_by_name_and_before_the_sub_folders(tmp_path: Path) -> None:
    put(tmp_path, "b/x.jpg", "b/a/y.TIFF", "a.JPG", "c.webp", "b.png", "a/z.gif", "a/z2.bmp")
    put(tmp_path, "B.jpeg", "d.tif", "notes.md", "Thumbs.db")
    assert [sample.path for sample in samples_of(tmp_path)] == [
        *("B.jpeg", "a.JPG", "b.png", "c.webp", "d.tif"),
        *("a/z.gif", "a/z2.bmp", "b/x.jpg", "b/a/y.TIFF"),
    ]


def test_the_order_does_not_depend_on_the_order_of_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *(f"{folder}/{i}.jpg" for folder in "xyz" for i in range(9)))
    put(tmp_path, "x/1.txt", "x/1.TXT")
    (tmp_path / "x/1.txt").write_text("lower")
    forward = list(FolderSource(tmp_path).scan())
    scandir = os.scandir

    class Backward:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backward)
    assert list(FolderSource(tmp_path).scan()) == forward
    assert Caption("lower") in [c for s in forward if isinstance(s, Sample) for c in s.captions]


def test_a_sample_knows_key_label_size_time_and_place(tmp_path: Path) -> None:
    put(tmp_path, "dogs/big/rex.1.jpg")
    os.utime(tmp_path / "dogs/big/rex.1.jpg", ns=(5, 1_700_000_000_123_456_789))
    assert samples_of(tmp_path) == [
        Sample(
            key="dogs/big/rex.1",
            path="dogs/big/rex.1.jpg",
            label="dogs",
            num_bytes=6,
            mtime_ns=1_700_000_000_123_456_789,
            place=f"{tmp_path}/dogs/big/rex.1.jpg",
        )
    ]


def test_hidden_files_and_folders_are_passed_by(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "._a.jpg", ".git/b.jpg", "c/.thumbs/d.jpg")
    assert [sample.key for sample in samples_of(tmp_path)] == ["a"]


def test_two_images_of_one_stem_both_come_with_one_key(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "a.png")
    assert [sample.key for sample in samples_of(tmp_path)] == ["a", "a"]


# --- captions ------------------------------------------------------------------------------------


def test_a_txt_holds_one_caption_a_line(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    text = "\ufeff a dog \r\n\r\n \t \na\u2028cat\nein Hund\rold Mac"
    (tmp_path / "a.txt").write_bytes(text.encode())
    lines = ["a dog", "a\u2028cat", "ein Hund", "old Mac"]
    assert captions_of(tmp_path) == [(line, None) for line in lines]


def test_json_wins_over_txt_where_it_has_a_caption(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("from txt")
    (tmp_path / "a.json").write_text('"from json"')
    assert captions_of(tmp_path) == [("from json", None)]
    for told in (
        '{"caption": null, "url": "u"}',
        '{"caption": ""}',
        '{"width": 3}',
        '{"title": "t"}',
    ):
        (tmp_path / "a.json").write_text(told)
        assert captions_of(tmp_path) == [("from txt", None)]
        assert problems_of(tmp_path) == []
    (tmp_path / "a.json").write_text("{")
    assert captions_of(tmp_path) == [("from txt", None)]
    assert len(problems_of(tmp_path)) == 1


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        pytest.param("a dog", [("a dog", None)], id="text"),
        pytest.param([" a dog ", "", None, "a cat"], [("a dog", None), ("a cat", None)], id="list"),
        pytest.param(["a dog", "a dog "], [("a dog", None)], id="said twice"),
        pytest.param(
            {"caption": "a", "captions": ["b", "a"]}, [("a", None), ("b", None)], id="two"
        ),
        pytest.param({"Text": "a", "language": "en"}, [("a", "en")], id="object with language"),
        pytest.param(
            {"texts": ["a", "b"], "lang": ["en", None]}, [("a", "en"), ("b", None)], id="languages"
        ),
        pytest.param(
            {"captions": [{"text": "a", "lang": "en"}, {"caption": "b", "language": "de"}, "c"]},
            [("a", "en"), ("b", "de"), ("c", None)],
            id="list of objects",
        ),
        pytest.param(
            {"caption": {"de": "a", "pt-BR": ["b", "c"]}},
            [("a", "de"), ("b", "pt-BR"), ("c", "pt-BR")],
            id="by language",
        ),
        pytest.param({"de": "a", "zh_Hant": ["b"]}, [("a", "de"), ("b", "zh_Hant")], id="bare"),
        pytest.param({"caption_de": "a", "caption": "b"}, [("a", "de"), ("b", None)], id="columns"),
        pytest.param({"caption": "a", "url": "u", "width": 3}, [("a", None)], id="img2dataset"),
        pytest.param({"caption": "a", "title": "t"}, [("a", None)], id="title beside caption"),
        pytest.param({"title": "t"}, [("t", None)], id="title alone"),
        pytest.param([{"raw": "a", "tokens": ["a"], "sentid": 3}], [("a", None)], id="Karpathy"),
        pytest.param({}, [], id="empty object"),
        pytest.param(None, [], id="null"),
    ],
)
def test_a_json_holds_captions_in_any_usual_shape(
    tmp_path: Path, value: object, captions: list[tuple[str, str | None]]
) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "a.json").write_text(json.dumps(value), encoding="utf-8-sig")
    assert captions_of(tmp_path) == captions
    assert problems_of(tmp_path) == []


@pytest.mark.parametrize(
    ("label", "expected"), [("wolf", "wolf"), (7, "7"), (None, "dogs"), ("", "dogs")]
)
def test_a_label_in_json_wins_over_the_folder(tmp_path: Path, label: object, expected: str) -> None:
    put(tmp_path, "dogs/a.jpg")
    (tmp_path / "dogs/a.json").write_text(json.dumps({"label": label, "key": "other"}))
    (sample,) = samples_of(tmp_path)
    assert (sample.key, sample.label) == ("dogs/a", expected)


@pytest.mark.parametrize(
    ("data", "kept", "reason"),
    [
        pytest.param(b"{", [], r"^malformed JSON \(.* at column 2\)$", id="malformed"),
        pytest.param(b"[" * 100_000, [], r"^malformed JSON \(nested too deeply\)$", id="deep"),
        pytest.param(b"[" * 99 + b"]" * 99, [], "^a caption is a list, expected text$", id="nest"),
        pytest.param(b'"caf\xe9"', [], "^not UTF-8; save it as UTF-8$", id="latin-1"),
        pytest.param('"é"'.encode("utf-16"), [], "^not UTF-8 .it looks like UTF-16", id="utf-16"),
        pytest.param(b"7", [], "^a caption is a number, expected text$", id="number"),
        pytest.param(b'["a", true]', ["a"], "^a caption is true or false, expected", id="bool"),
        pytest.param(
            rb'["a", "\ud800"]',
            ["a"],
            r"^a caption is not valid Unicode text: '\\ud800'$",
            id="half a character",
        ),
        pytest.param(
            b'{"captions": ["a", "b"], "lang": ["en"]}',
            ["a", "b"],
            "^2 captions but 1 languages; the captions are kept without language$",
            id="languages",
        ),
        pytest.param(
            b'{"caption": {"de": "a", "score": 3}}',
            ["a"],
            "^a caption object has the name 'score'",
            id="odd object",
        ),
        pytest.param(
            b'{"shapes": []}',
            [],
            "^no caption among 'shapes'; expected caption, captions",
            id="something else",
        ),
        pytest.param(b'{"caption": "a", "label": [1]}', ["a"], "^the label is a list", id="label"),
        pytest.param(b'{"caption": "a", "lang": 3}', ["a"], "^a language is a number", id="lang"),
    ],
)  # fmt: skip
def test_a_bad_json_is_a_problem_and_the_rest_is_kept(
    tmp_path: Path, data: bytes, kept: list[str], reason: str
) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "a.json").write_bytes(data)
    assert [text for text, _ in captions_of(tmp_path)] == kept
    (problem,) = problems_of(tmp_path)
    assert (problem.place, problem.key) == (f"{tmp_path}/a.json", "a")
    assert re.search(reason, problem.reason)


def test_a_nul_in_a_txt_is_a_character_and_western_utf16_is_named_even_without_its_mark(
    tmp_path: Path,
) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_bytes(b"a dog\0bc")
    assert captions_of(tmp_path) == [("a dog\0bc", None)]
    (tmp_path / "a.txt").write_bytes("ein Hünd".encode("utf-16-le"))
    assert captions_of(tmp_path) == []
    (problem,) = problems_of(tmp_path)
    assert problem.reason == "not UTF-8 (it looks like UTF-16); save it as UTF-8"


def test_a_line_that_is_not_utf8_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_bytes(b"a dog\ncaf\xe9\na cat\n")
    assert captions_of(tmp_path) == [("a dog", None), ("a cat", None)]
    assert problems_of(tmp_path) == [
        Problem(place=f"{tmp_path}/a.txt line 2", reason="not UTF-8", key="a")
    ]


def test_a_caption_file_too_large_for_captions_is_not_read(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate((1 << 24) + 1)
    (problem,) = problems_of(tmp_path)
    assert problem.reason == "the caption file is larger than 16,777,216 bytes"


def test_a_caption_file_that_leads_nowhere_is_a_problem(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "a.txt").symlink_to("gone.txt")
    assert captions_of(tmp_path) == []
    (problem,) = problems_of(tmp_path)
    assert problem.reason == "the caption file cannot be read (No such file or directory)"


# --- links, and names that are no files ----------------------------------------------------------


def test_linked_folders_are_followed_and_loops_are_problems(tmp_path: Path) -> None:
    put(tmp_path, "corpus/in/a.jpg", "elsewhere/b.jpg")
    root = tmp_path / "corpus"
    (root / "in/up").symlink_to(root)
    (root / "in/self").symlink_to("self")
    (root / "in/dot").symlink_to(".")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(root / "in")
    assert [sample.path for sample in samples_of(root)] == [
        *("in/a.jpg", "linked/b.jpg", "linked/back/a.jpg"),
    ]
    reason = "a link to a folder that holds it; not followed"
    assert [(problem.place, problem.reason) for problem in problems_of(root)] == [
        (f"{root}/in/self", "a dead link"),
        (f"{root}/in/dot", reason),
        (f"{root}/in/up", reason),
        (f"{root}/linked/back/self", "a dead link"),
        (f"{root}/linked/back/dot", reason),
        (f"{root}/linked/back/up", reason),
    ]


def test_a_dead_link_is_a_sample_without_its_image(tmp_path: Path) -> None:
    put(tmp_path, "real.jpg")
    (tmp_path / "a.jpg").symlink_to("gone.jpg")
    (tmp_path / "b.jpg").symlink_to("b.jpg")
    (tmp_path / "c.jpg").symlink_to("real.jpg")
    sizes = {sample.key: sample.num_bytes for sample in samples_of(tmp_path)}
    assert sizes == {"a": None, "b": None, "c": 6, "real": 6}
    assert all((s.mtime_ns is None) == (s.num_bytes is None) for s in samples_of(tmp_path))


def test_a_dead_link_that_may_be_a_folder_is_a_problem(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "train").symlink_to("/mnt/gone")
    assert problems_of(tmp_path) == [Problem(place=f"{tmp_path}/train", reason="a dead link")]


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "folder.jpg/b.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "a.txt")
    assert [sample.key for sample in samples_of(tmp_path)] == ["a", "folder.jpg/b"]
    assert problems_of(tmp_path) == [
        Problem(place=f"{tmp_path}/pipe.jpg", reason="not a regular file")
    ]


def test_a_file_name_that_is_not_utf8_is_a_problem_that_can_be_printed(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"")
    assert [sample.key for sample in samples_of(tmp_path)] == ["a"]
    assert problems_of(tmp_path) == [
        Problem(place=f"{tmp_path}/caf\\xe9.jpg", reason="the file name is not UTF-8; rename it")
    ]


def test_a_folder_that_cannot_be_listed_is_a_problem_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "closed/a.jpg", "open/b.jpg")
    scandir = os.scandir

    def refuse_closed(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_closed)
    assert [sample.key for sample in samples_of(tmp_path)] == ["open/b"]
    assert problems_of(tmp_path) == [
        Problem(place=f"{tmp_path}/closed", reason="the folder cannot be read (Permission denied)")
    ]


def test_a_folder_without_images_says_what_it_looks_for(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "b/c.heic")
    with pytest.raises(SourceError, match=r"holds no images; expected files ending in .jpg, .jpeg"):
        samples_of(tmp_path)


def test_a_folder_that_vanished_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"/gone cannot be read \(No such file or directory\)"):
        samples_of(tmp_path / "gone")


# --- fingerprint ---------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_what_a_scan_reads_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    put(tmp_path, "a.jpg", "b/c.jpg")
    seen = [FolderSource(tmp_path).fingerprint()]

    def is_new() -> bool:
        seen.append(FolderSource(tmp_path).fingerprint())
        return seen[-1] not in seen[:-1]

    assert not is_new()
    put(tmp_path, "notes.md", "other.txt", ".hidden.jpg")
    assert not is_new()
    put(tmp_path, "a.txt")
    assert is_new()
    (tmp_path / "a.txt").write_bytes(b"pixelz.")
    assert is_new()
    os.utime(tmp_path / "b/c.jpg", ns=(1, 1))
    assert is_new()
    (tmp_path / "b/c.jpg").rename(tmp_path / "b/d.jpg")
    assert is_new()
    (tmp_path / "a.jpg").unlink()
    assert is_new()


# --- open_source ---------------------------------------------------------------------------------


def test_a_folder_is_opened_as_a_folder_with_an_absolute_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = open_source(".")
    assert (source.kind, source.location, source.root) == ("folder", tmp_path, tmp_path)


def test_columns_for_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"columns are for tables, and .* is a folder"):
        open_source(tmp_path, columns=TableColumns(image="path"))


def test_a_place_with_nothing_there_says_what_could_be(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"there is no .*/gone; expected a folder of images or of"
    ):
        open_source(tmp_path / "gone")


def test_a_file_of_an_unknown_kind_says_what_could_be_read(tmp_path: Path) -> None:
    put(tmp_path, "a.xlsx")
    accepted = r"a table \(\.jsonl, .*, \.parquet\)$"
    with pytest.raises(SourceError, match=rf"a\.xlsx is not a corpus.*{accepted}"):
        open_source(tmp_path / "a.xlsx")


# -- what is not used


def unused_of(root: Path) -> list[tuple[str, int, str]]:
    """What, how many, and the first of them below the root."""
    entries = [entry for entry in FolderSource(root).scan() if isinstance(entry, Unused)]
    return [(e.reason, e.count, os.path.relpath(e.place, root)) for e in entries]


def test_images_with_rarer_endings_are_taken(tmp_path: Path) -> None:
    endings = (".avif", ".jp2", ".jfif", ".JPE", ".apng", ".dib", ".ppm", ".jpg_large", ".mpo")
    put(tmp_path, *(f"{i}{ending}" for i, ending in enumerate(endings)))
    assert [sample.path for sample in samples_of(tmp_path)] == [
        f"{i}{ending}" for i, ending in enumerate(endings)
    ]
    assert unused_of(tmp_path) == []


def test_other_files_are_counted_by_ending_but_for_those_that_stand_beside_images(
    tmp_path: Path,
) -> None:
    put(tmp_path, "a.jpg", "b.heic", "B.HEIC", "c.svg", "noending", "sub/d.heic", "sub/e.mp4")
    put(tmp_path, "README.md", "LICENSE", "data.csv", "Thumbs.db", ".DS_Store", "a.txt")
    assert unused_of(tmp_path) == [
        ("files ending in .heic, not read as images", 2, "B.HEIC"),
        ("files ending in .svg, not read as images", 1, "c.svg"),
        ("files without an ending, not read as images", 1, "noending"),
        ("files ending in .heic, not read as images", 1, "sub/d.heic"),
        ("files ending in .mp4, not read as images", 1, "sub/e.mp4"),
    ]


def test_folders_of_storage_systems_are_passed_by_and_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "@eaDir/a.jpg/THUMB.jpg", "$RECYCLE.BIN/r.jpg", "x/b.jpg")
    put(tmp_path, "x/#recycle/c.jpg", ".Trash-1000/files/d.jpg", "__MACOSX/e.jpg", ".git/f.jpg")
    assert [sample.path for sample in samples_of(tmp_path)] == ["a.jpg", "x/b.jpg"]
    what = "folders of storage systems (thumbnails, recycle bins), skipped"
    assert unused_of(tmp_path) == [(what, 4, "$RECYCLE.BIN"), (what, 1, "x/#recycle")]


def test_a_folder_of_other_files_alone_says_what_it_saw(tmp_path: Path) -> None:
    put(tmp_path, "a.heic", "b.heic", "c.raw")
    with pytest.raises(SourceError, match=r"seen: 2 files ending in .heic, not read as images, 1 "):
        list(FolderSource(tmp_path).scan())


def test_labels_are_the_classes_below_the_splits(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "annotations/x.json")
    assert [sample.label for sample in samples_of(tmp_path)] == ["cat", "dog", "cat"]


def test_a_class_called_train_beside_others_is_one(tmp_path: Path) -> None:
    put(tmp_path, "bus/1.jpg", "train/2.jpg")
    assert [sample.label for sample in samples_of(tmp_path)] == ["bus", "train"]
