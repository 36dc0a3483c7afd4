"""TableSource: the same samples from every kind of table, and a place for everything wrong."""

import csv
import json
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from siglip2_cache.errors import SettingError, SourceError
from siglip2_cache.precompute.sources.fields.columns import TableColumns
from siglip2_cache.precompute.sources.open import open_source
from siglip2_cache.precompute.sources.readers import csv_records, lines
from siglip2_cache.precompute.sources.readers.lines import NOT_TEXT
from siglip2_cache.precompute.sources.samples import Problem, Sample
from siglip2_cache.precompute.sources.table import TableSource

KINDS = ["jsonl", "csv", "tsv", "parquet"]


def write_table(
    folder: Path, kind: str, rows: Sequence[dict[str, object]], name: str = "captions"
) -> Path:
    """A table written by other code than ours; lists go into CSV cells as JSON."""
    path = folder / f"{name}.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            for row in rows:
                writer.writerow(
                    {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
                )
    return path


def samples_of(path: Path, columns: TableColumns | None = None) -> list[Sample]:
    return [
        entry
        for entry in open_source(path, columns=columns).scan()
        if not isinstance(entry, Problem)
    ]


def problems_of(path: Path, columns: TableColumns | None = None) -> list[tuple[str, str]]:
    """Where (without the table's path) and why."""
    return [
        (entry.place.removeprefix(f"{path} "), entry.reason)
        for entry in open_source(path, columns=columns).scan()
        if isinstance(entry, Problem)
    ]


def captions_of(path: Path, columns: TableColumns | None = None) -> list[tuple[str, str | None]]:
    """Captions of a table with one row."""
    (sample,) = samples_of(path, columns)
    return [(caption.text, caption.lang) for caption in sample.captions]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table_gives_the_same_samples(tmp_path: Path, kind: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"pixels")
    os.utime(tmp_path / "images/a.jpg", ns=(5, 1_700_000_000_123_456_789))
    rows: list[dict[str, object]] = [
        {"image": "images/a.jpg", "id": 7, "captions": ["x", " y "], "lang": "de", "label": "dog"},
        {"image": "./images//b.jpg", "id": 8, "captions": ["z\n2"], "lang": "", "label": ""},
    ]
    path = write_table(tmp_path, kind, rows)
    first, second = samples_of(path)
    row = "row" if kind == "parquet" else "line"
    number = 2 if kind in ("csv", "tsv") else 1
    assert (first.key, first.path, first.label) == ("7", "images/a.jpg", "dog")
    assert [(c.text, c.lang) for c in first.captions] == [("x", "de"), ("y", "de")]
    assert (first.num_bytes, first.mtime_ns) == (6, 1_700_000_000_123_456_789)
    assert first.place == f"{path} {row} {number}"
    assert (second.key, second.path, second.label) == ("8", "images/b.jpg", None)
    assert [(c.text, c.lang) for c in second.captions] == [("z\n2", None)]
    assert (second.num_bytes, second.mtime_ns) == (None, None)
    assert problems_of(path) == []


# A name is stripped and not blank; UTF-8 holds no surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = texts.map(str.strip).filter(bool)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(st.tuples(names, st.lists(texts, max_size=3)), min_size=1, max_size=5))
def test_any_key_and_any_captions_come_back(
    tmp_path_factory: pytest.TempPathFactory, kind: str, rows: list[tuple[str, list[str]]]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    path = write_table(
        folder, kind, [{"image": "a.jpg", "key": key, "captions": texts} for key, texts in rows]
    )
    found = [(s.key, [c.text for c in s.captions]) for s in samples_of(path)]
    stripped = [(key, [text.strip() for text in texts]) for key, texts in rows]
    assert found == [(key, list(dict.fromkeys(filter(None, texts)))) for key, texts in stripped]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(caption=names.filter(lambda text: not text.startswith("[")))
def test_any_single_caption_comes_back(
    tmp_path_factory: pytest.TempPathFactory, kind: str, caption: str
) -> None:
    folder = tmp_path_factory.mktemp("table")
    path = write_table(folder, kind, [{"image": "a.jpg", "caption": caption}])
    assert captions_of(path) == [(caption, None)]


# --- columns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image", ["image", "Image_Path", "file name", "FILEPATH", "img", "imageFile", "path"]
)
def test_usual_names_are_found_in_any_spelling(tmp_path: Path, image: str) -> None:
    path = write_table(
        tmp_path,
        "csv",
        [{"n": 1, image: "a.jpg", "UID": "k", "TEXT": "t", "Class Name": "dog", "Language": "en"}],
    )
    (sample,) = samples_of(path)
    assert (sample.path, sample.key, sample.label) == ("a.jpg", "k", "dog")
    assert captions_of(path) == [("t", "en")]


def test_the_first_usual_name_wins_and_every_caption_column_counts(tmp_path: Path) -> None:
    row: dict[str, object] = {
        **{"file": "no.jpg", "text": "1", "captions": ["2", "3"], "caption": "1", "image_id": 4},
        **{"title": "no", "key": "k", "image": "yes.jpg", "id": 5},
    }
    path = write_table(tmp_path, "parquet", [row])
    (sample,) = samples_of(path)
    assert (sample.path, sample.key) == ("yes.jpg", "k")
    path_twice = write_table(tmp_path, "csv", [{"Image": "first.jpg", "image": "second.jpg"}])
    assert [sample.path for sample in samples_of(path_twice)] == ["first.jpg"]
    assert captions_of(path) == [("1", None), ("2", None), ("3", None)]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_a_language_give_it_to_their_captions(tmp_path: Path, kind: str) -> None:
    row: dict[str, object] = {"path": "a.jpg", "caption": "o", "caption_de": "d", "text:pt-BR": "p"}
    row |= {"captions-zh_Hant": "z", "caption_url": "u", "text_len": "3", "caption_id": "77"}
    path = write_table(tmp_path, kind, [row])
    captions = [("o", None), ("d", "de"), ("p", "pt-BR"), ("z", "zh_Hant")]
    assert captions_of(path) == captions  # id is an identifier here
    path = write_table(tmp_path, kind, [{"path": "a.jpg", "text": "t", "text_id": "seekor anjing"}])
    assert captions_of(path) == [("t", None), ("seekor anjing", "id")]  # and Indonesian here


def test_title_and_description_are_captions_only_where_there_is_no_other(tmp_path: Path) -> None:
    row: dict[str, object] = {"image": "a.jpg", "title": "t", "Description": "d"}
    assert captions_of(write_table(tmp_path, "csv", [row])) == [("t", None), ("d", None)]
    assert captions_of(write_table(tmp_path, "csv", [row | {"text": "x"}])) == [("x", None)]


def test_columns_can_be_named(tmp_path: Path) -> None:
    row: dict[str, object] = {"image": "no", "bild": "a.jpg", "caption": "no", "oben": "o"}
    row |= {"unten_fr": "u", "nr": 3, "sprache": "de", "art": "Hund", "key": "no"}
    columns = TableColumns(
        image="bild", captions=("unten_fr", "oben"), key="nr", lang="sprache", label="art"
    )
    path = write_table(tmp_path, "jsonl", [row])
    (sample,) = samples_of(path, columns)
    assert (sample.path, sample.key, sample.label) == ("a.jpg", "3", "Hund")
    assert captions_of(path, columns) == [("u", "fr"), ("o", "de")]
    assert captions_of(path, TableColumns(image="bild", captions=())) == []


def test_a_column_named_for_one_thing_is_not_found_for_another(tmp_path: Path) -> None:
    path = write_table(tmp_path, "csv", [{"image": "a.jpg", "label": "a dog", "class": "dog"}])
    (sample,) = samples_of(path, TableColumns(captions=("label",)))
    assert (sample.label, [c.text for c in sample.captions]) == ("dog", ["a dog"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_named_column_that_is_not_there_is_refused(tmp_path: Path, kind: str) -> None:
    path = write_table(tmp_path, kind, [{"image": "a.jpg", "caption": "x"}])
    message = r"has no column 'captoin', it has 'image', 'caption'; did you mean 'caption'\?$"
    with pytest.raises(SourceError, match=message):
        samples_of(path, TableColumns(captions=("captoin",)))


def test_very_many_columns_are_named_in_a_short_message(tmp_path: Path) -> None:
    names = [f"column number {i}" for i in range(500)]
    table = tmp_path / "t.csv"
    table.write_text(",".join(names) + "\n")
    with pytest.raises(SourceError, match=r"'column number 0', .* and 4\d\d more; ") as error:
        samples_of(table)
    assert len(str(error.value).removeprefix(str(table))) < 400


def test_captions_named_as_one_text_are_refused() -> None:
    with pytest.raises(SettingError, match=r"columns.captions must be a tuple .* got 'caption'"):
        TableColumns(captions="caption")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_without_images_is_refused(tmp_path: Path, kind: str) -> None:
    path = write_table(tmp_path, kind, [{"where": "a.jpg", "caption": "x"}])
    message = (
        r"has no column of images, it has 'where', 'caption'; expected one named image, image_"
    )
    with pytest.raises(SourceError, match=message):
        samples_of(path)


def test_two_columns_of_one_name_are_refused_where_it_matters(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,,,caption,caption\na.jpg,,,x,y\n")
    with pytest.raises(SourceError, match=r"has two columns named 'caption'; rename one of them"):
        samples_of(path)
    path.write_text("image,,,caption\na.jpg,,,x\n")
    assert captions_of(path) == [("x", None)]


def test_a_jsonl_may_name_a_column_in_some_rows_only(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"image": "a.jpg"}] * 1100
    path = write_table(tmp_path, "jsonl", [*rows, {"image": "b.jpg", "caption_de": "x"}])
    assert [c.lang for c in samples_of(path)[-1].captions] == ["de"]


# --- languages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_languages_goes_with_the_list_of_captions(tmp_path: Path, kind: str) -> None:
    row: dict[str, object] = {"image": "a.jpg", "captions": ["x", "", "y"]}
    path = write_table(tmp_path, kind, [row | {"langs": ["de", "en", "fr"]}])
    assert captions_of(path) == [("x", "de"), ("y", "fr")]
    path = write_table(tmp_path, kind, [row | {"langs": ["de", "en"]}])
    assert captions_of(path) == [("x", None), ("y", None)]
    ((_, reason),) = problems_of(path)
    assert reason == "3 captions but 2 languages; the captions are kept without language"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_captions_by_language_and_as_objects(tmp_path: Path, kind: str) -> None:
    row: dict[str, object] = {"image": "a.jpg", "caption": {"de": ["x", "y"], "en": ["z"]}}
    path = write_table(tmp_path, kind, [row, {"image": "b.jpg", "caption": {"de": ["x"]}}])
    assert [[c.lang for c in s.captions] for s in samples_of(path)] == [["de", "de", "en"], ["de"]]
    row = {"image": "a.jpg", "captions": [{"text": "x", "lang": "de"}, {"text": "y", "lang": None}]}
    assert captions_of(write_table(tmp_path, kind, [row])) == [("x", "de"), ("y", None)]


def test_a_parquet_map_is_captions_by_language(tmp_path: Path) -> None:
    texts = pa.array([[("de", "x"), ("en", "y")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"image": ["a.jpg"], "text": texts}), tmp_path / "t.parquet")
    assert captions_of(tmp_path / "t.parquet") == [("x", "de"), ("y", "en")]


# --- keys and paths -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"), [(12, "12"), (12.0, "12"), (" k ", "k"), (None, "b/a"), ("", "b/a")]
)
def test_a_key_is_a_text_or_a_whole_number_or_the_path(
    tmp_path: Path, key: object, expected: str
) -> None:
    path = write_table(tmp_path, "jsonl", [{"image": "b/a.jpg", "key": key}])
    assert [sample.key for sample in samples_of(path)] == [expected]


def test_paths_may_be_absolute_or_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "table").mkdir()
    (tmp_path / "x.jpg").write_bytes(b"pixels")
    (tmp_path / "table/y.jpg").write_bytes(b"pixels")
    images = [f"{tmp_path}/x.jpg", "../x.jpg", f"{tmp_path}/table/y.jpg", "y.jpg"]
    path = write_table(tmp_path / "table", "jsonl", [{"image": image} for image in images])
    found = samples_of(path)
    assert [s.path for s in found] == ["../x.jpg", "../x.jpg", "y.jpg", "y.jpg"]
    assert [s.key for s in found] == ["../x", "../x", "y", "y"]
    assert {s.num_bytes for s in found} == {6}


def test_an_absolute_path_is_found_from_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "deep/er/table").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/er/table")
    (tmp_path / "x.jpg").write_bytes(b"pixels")
    write_table(tmp_path / "link", "jsonl", [{"image": f"{tmp_path}/x.jpg"}])
    (sample,) = samples_of(tmp_path / "link/captions.jsonl")
    assert sample.num_bytes == 6
    assert (tmp_path / "link" / sample.path).samefile(tmp_path / "x.jpg")


def test_a_path_through_a_link_is_not_folded(tmp_path: Path) -> None:
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    (tmp_path / "far/x.jpg").write_bytes(b"pixels")
    path = write_table(tmp_path, "jsonl", [{"image": "link/../x.jpg"}])
    assert [(s.path, s.num_bytes) for s in samples_of(path)] == [("link/../x.jpg", 6)]


# --- bad rows -----------------------------------------------------------------------------------


def test_every_bad_line_of_a_jsonl_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    bad = [
        (b'{"image": "x.jpg"', r"malformed JSON (expecting ',' delimiter at column 18)"),
        (b'{"image": "caf\xe9.jpg"}', NOT_TEXT),
        (b'["x.jpg", "a dog"]', "expected an object of named values, got a list"),
        (b'{"caption": "a dog"}', "no image is named"),
        (b'{"image": null}', "no image is named"),
        (b'{"image": " "}', "the image path is empty"),
        (b'{"image": 7}', "the image path is a number, expected text"),
        (b'{"image": "/"}', "the image path names no file: '/'"),
        (rb'{"image": "\ud800.jpg"}', r"the image path is not valid Unicode text: '\ud800.jpg'"),
        (rb'{"image": "a\u0000.jpg"}', r"the image path holds a NUL byte: 'a\x00.jpg'"),
        (
            b'{"image": "https://x/a.jpg"}',
            "the image is a URL, expected a file (img2dataset downloads such): 'https://x/a.jpg'",
        ),
        (b'{"image": "x.jpg", "key": true}', "the key is true or false, expected text"),
        (b'{"image": "x.jpg", "key": true}', "the key is true or false, expected text"),
        (b'{"image": "x.jpg", "n": ' + b"9" * 5000 + b"}", "malformed JSON (a number is too long)"),
        (b"[" * 100_000, "malformed JSON (nested too deeply)"),
    ]
    good = [b'\xef\xbb\xbf{"image": "first.jpg"}\r', b"", *(line for line, _ in bad)]
    path.write_bytes(b"\n".join([*good, b'{"image": "last.jpg"}']))
    assert [s.key for s in samples_of(path)] == ["first", "last"]
    assert problems_of(path) == [(f"line {i}", reason) for i, (_, reason) in enumerate(bad, 3)]


def test_every_bad_line_of_a_csv_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"\xef\xbb\xbfimage, caption\r\n"
        b'1.jpg, "two\r\nlines, ""quoted"""\r\n'
        b"\r\n"
        b" , \r\n"
        b"5.jpg,caf\xe9\r\n"
        b"6.jpg,a,b\r\n"
        b"7.jpg\r\n"
        b'8.jpg,"a "big" dog"\r\n'
        b",no image\r\n"
        b"10.jpg,[not a list\r\n"
        b"\0\0\0,\0\r\n"
        b'12.jpg,"never closed\r\n'
        b"13.jpg,last"
    )
    captions = {s.key: [c.text for c in s.captions] for s in samples_of(path)}
    first = 'two\r\nlines, "quoted"'
    assert captions == {"1": [first], "10": ["[not a list"], "13": ["last"]}
    cells = 'but 2 columns; a cell that holds a separator is written in quotes: "a, b"'
    assert problems_of(path) == [
        ("line 6", NOT_TEXT),
        ("line 7", f"3 cells, {cells}"),
        ("line 8", f"1 cells, {cells}"),
        (
            "line 9",
            'malformed CSV (text follows a closing quote; a quote inside a cell is written "")',
        ),
        ("line 10", "the image path is empty"),
        ("line 12", r"the image path holds a NUL byte: '\x00\x00\x00'"),
        ("line 13", "malformed CSV (a quote is opened and never closed)"),
    ]


def test_a_broken_record_of_several_lines_costs_its_first_line_only(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('image\tcaption\n1.jpg\t"odd\n2.jpg\tb\n3.jpg\t"c"\n4.jpg\td\n')
    assert [(s.key, s.place[-6:]) for s in samples_of(path)] == [
        *(("2", "line 3"), ("3", "line 4"), ("4", "line 5")),
    ]
    assert [place for place, _ in problems_of(path)] == ["line 2"]


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image,caption\n0.jpg,"odd\n' + "x.jpg,a dog\n" * 10_000)
    monkeypatch.setattr(csv_records, "_MAX_FIELD", 2_000)
    old_limit = csv.field_size_limit(2_000)
    try:
        tracemalloc.start()
        num_rows = sum(isinstance(entry, Sample) for entry in TableSource(path).scan())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        csv.field_size_limit(old_limit)
    assert num_rows == 10_000
    assert peak < 200_000  # the lines are 0.6 MB as Python texts


@pytest.mark.parametrize("kind", KINDS)
def test_a_very_long_caption_is_a_caption(tmp_path: Path, kind: str) -> None:
    caption = "dog " * 100_000 + "end"
    path = write_table(tmp_path, kind, [{"image": "a.jpg", "caption": caption}])
    assert captions_of(path) == [(caption, None)]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_line_too_long_for_memory_is_a_problem(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, object]] = [{"image": f"{i}.jpg", "caption": "x"} for i in range(3)]
    rows[1]["caption"] = "x" * 5000
    path = write_table(tmp_path, kind, rows)
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    monkeypatch.setattr(csv_records, "MAX_LINE", 1000)
    assert [s.key for s in samples_of(path)] == ["0", "2"]
    where = "line 3" if kind == "csv" else "line 2"
    ((place, reason),) = problems_of(path)
    assert place == where
    assert "the line is longer than 1,000 characters" in reason


def test_a_parquet_text_that_is_not_utf8_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    caption = pa.array([b"x", b"caf\xe9", b"y"]).view(pa.string())
    table = pa.table({"image": ["1.jpg", "2.jpg", "3.jpg"], "caption": caption})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [s.key for s in samples_of(tmp_path / "t.parquet")] == ["1", "3"]
    assert problems_of(tmp_path / "t.parquet") == [("row 2", "not UTF-8")]


def test_parquet_rows_are_counted_across_batches(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"image": f"{i}.jpg"} for i in range(1, 2501)]
    rows[2047] = {"image": None}
    path = write_table(tmp_path, "parquet", rows)
    assert problems_of(path) == [("row 2048", "no image is named")]
    assert samples_of(path)[-1].place == f"{path} row 2500"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_wrong_caption_or_label_is_a_problem_and_the_sample_stays(
    tmp_path: Path, kind: str
) -> None:
    row: dict[str, object] = {"image": "a.jpg", "key": "k", "caption": 7, "text": "x", "label": [1]}
    path = write_table(tmp_path, kind, [row])
    sample, *problems = open_source(path).scan()
    assert isinstance(sample, Sample)
    assert ([c.text for c in sample.captions], sample.label) == (["x"], None)
    place = f"{path} row 1" if kind == "parquet" else f"{path} line 1"
    assert problems == [
        Problem(place=place, reason="the label is a list, expected text", key="k"),
        Problem(place=place, reason="a caption is a number, expected text", key="k"),
    ]


# --- tables that cannot be read at all ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        pytest.param("t.jsonl", b"\n \n", "is empty; expected a row for each image", id="jsonl"),
        pytest.param("t.csv", b"", "is empty; expected a row for each image", id="csv"),
        pytest.param("t.csv", b"image\n\n", "has no rows below its column names", id="header"),
        pytest.param("t.csv", b"im\xe9ge\n", "line 1 is not UTF-8; save it as UTF-8, or name", id="latin"),
        pytest.param(
            "t.csv", b"\n\"image\n", r"line 2 should name the columns: malformed CSV", id="quote"
        ),
        pytest.param(
            "t.jsonl", b'[\n{"image": "a.jpg"', r"has no readable row \(line 1: mal", id="json"
        ),
        pytest.param(
            "t.jsonl", '{"image"'.encode("utf-16-le"), r"looks like UTF-16 without a mark", id="utf-16"
        ),
        pytest.param("t.parquet", b"PAR1", r"cannot be read as Parquet \(", id="parquet"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        samples_of(tmp_path / name)


def test_a_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.string())}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"t\.parquet has no rows below its column names"):
        samples_of(tmp_path / "t.parquet")


def test_a_parquet_column_of_images_that_holds_neither_paths_nor_bytes_is_refused(
    tmp_path: Path,
) -> None:
    path = write_table(tmp_path, "parquet", [{"image": [7]}])
    with pytest.raises(SourceError, match=r"column 'image' holds list<.*expected text: paths of"):
        samples_of(path)
    table = pa.table({"image": pa.array(["a.jpg"]).dictionary_encode()})
    pq.write_table(table, path)
    assert [s.key for s in samples_of(path)] == ["a"]


def test_a_parquet_that_is_damaged_inside_says_where(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"image": [f"{i}.jpg" for i in range(4000)]})
    pq.write_table(table, path, row_group_size=2048, compression="gzip", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start + 60 : start + 200] = b"\xff" * 140
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"is damaged from row 2049 on \(.*\); copy it again"):
        samples_of(path)


# --- fingerprint, memory ------------------------------------------------------------------------


def test_the_fingerprint_changes_with_the_table_and_with_the_columns(tmp_path: Path) -> None:
    path = write_table(tmp_path, "csv", [{"image": "a.jpg"}])
    os.utime(path, ns=(1, 1))
    first = open_source(path).fingerprint()
    (tmp_path / "a.jpg").write_bytes(b"pixels")
    assert open_source(path).fingerprint() == first
    assert open_source(path, columns=TableColumns(image="image")).fingerprint() != first
    os.utime(path, ns=(1, 2))
    second = open_source(path).fingerprint()
    path.write_bytes(path.read_bytes() + b"b.jpg\n")
    os.utime(path, ns=(1, 2))
    assert len({first, second, open_source(path).fingerprint()}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_streamed(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, object]] = [
        {"image": "a.jpg", "caption": f"{i} " + "dog " * 500} for i in range(3000)
    ]
    path = write_table(tmp_path, kind, rows)
    del rows
    tracemalloc.start()
    try:
        assert sum(1 for _ in TableSource(path).scan()) == 3000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000  # the captions are 6 MB; a Parquet batch holds 2 MB of them
