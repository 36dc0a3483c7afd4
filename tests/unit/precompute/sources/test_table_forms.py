"""Tables as people write them: other separators and encodings, no line of names, quotes that do not close."""

import base64
import csv
import datetime
import decimal
import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from siglip2_cache.errors import SettingError, SourceError
from siglip2_cache.images.image_bytes import ImageLocation, read_image_bytes
from siglip2_cache.precompute.sources import Problem, Sample, TableColumns, open_source
from siglip2_cache.precompute.sources.fields.captions import clean_name


def read(
    path: Path, columns: TableColumns | None = None
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions by key, and reasons by where in the table."""
    found: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for item in open_source(path, columns=columns).scan():
        if isinstance(item, Sample):
            found[item.key] = [caption.text for caption in item.captions]
        else:
            assert isinstance(item, Problem)
            reasons[item.place.removeprefix(f"{path} ")] = item.reason
    return found, reasons


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


# -- separators


@pytest.mark.parametrize("separator", ["\t", ";", "|", ",", "| ", "; "])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_the_separator_is_the_one_that_names_a_column_of_images(
    tmp_path: Path, ending: str, separator: str
) -> None:
    rows = [["image_name", "caption"], ["a.jpg", "a dog"], ["b.jpg", '"a cat, a; \t| dog"']]
    text = "".join(separator.join(row) + "\n" for row in rows)
    found = read(write(tmp_path / f"t.{ending}", text))
    assert found == ({"a": ["a dog"], "b": ["a cat, a; \t| dog"]}, {})


def test_the_separator_of_the_ending_wins_where_it_names_the_columns(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "image,caption;caption\na.jpg,x;y\n")
    assert read(table, TableColumns(captions=("caption;caption",))) == ({"a": ["x;y"]}, {})


def test_a_column_that_was_named_chooses_the_separator_too(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "where;what\na.jpg;x, y\n")
    columns = TableColumns(image="where", captions=("what",))
    assert read(table, columns) == ({"a": ["x, y"]}, {})


# -- no line of names


@pytest.mark.parametrize("separator", [",", "\t", "|"])
def test_columns_without_names_are_named_by_number(tmp_path: Path, separator: str) -> None:
    table = write(tmp_path / "t.csv", f"a.jpg{separator}one\nb.jpg{separator}two\n")
    with pytest.raises(
        SourceError, match=r"looks like a row.*--image-column 1 --caption-column 2$"
    ):
        read(table)
    columns = TableColumns(image="1", captions=("2",))
    assert read(table, columns) == ({"a": ["one"], "b": ["two"]}, {})


def test_a_number_that_is_a_name_is_a_name(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "1,2\na.jpg,one\n")
    assert read(table, TableColumns(image="1", captions=("2",))) == ({"a": ["one"]}, {})


def test_a_table_of_urls_is_sent_to_img2dataset(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "caption,url\na dog,https://x.org/a.jpg\n")
    with pytest.raises(SourceError, match=r"if 'url' holds URLs, download them with img2dataset"):
        read(table)
    table = write(tmp_path / "t.csv", "caption,image\na dog,https://x.org/a.jpg\n")
    assert "img2dataset downloads such" in read(table)[1]["line 2"]


# -- encodings


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("written", "named"),
    [("utf-16", None), ("utf-8-sig", None), ("utf-16-le", "utf-16-le"), ("latin-1", "latin-1")],
)
def test_other_encodings_are_read_by_their_mark_or_as_named(
    tmp_path: Path, ending: str, written: str, named: str | None
) -> None:
    row = json.dumps({"image": "a.jpg", "caption": "café"}, ensure_ascii=False)
    text = "image,caption\na.jpg,café\n" if ending == "csv" else f"{row}\n"
    table = write(tmp_path / f"t.{ending}", text, written)
    columns = TableColumns(encoding=named) if named else None
    assert read(table, columns) == ({"a": ["café"]}, {})


def test_an_encoding_that_was_not_named_is_asked_for_in_one_line(tmp_path: Path) -> None:
    text = "image,caption\na.jpg,café\nb.jpg,tea\n"
    found, reasons = read(write(tmp_path / "t.csv", text, "latin-1"))
    assert found == {"b": ["tea"]}
    assert reasons["line 2"].endswith("name its encoding, such as --encoding latin-1")
    with pytest.raises(SourceError, match=r"UTF-16 without a mark; use --encoding utf-16-be$"):
        read(write(tmp_path / "t.csv", text, "utf-16-be"))


def test_bytes_that_the_named_encoding_has_not_cost_their_row(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b"image,caption\na.jpg,caf\x81\nb.jpg,tea\n")
    found, reasons = read(table, TableColumns(encoding="cp1252"))
    assert (found, list(reasons)) == ({"b": ["tea"]}, ["line 2"])


def test_an_encoding_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match=r"encoding 'utf-99' is unknown to Python"):
        TableColumns(encoding="utf-99")


# -- quotes


@pytest.mark.parametrize("order", [["image", "caption"], ["caption", "image"]], ids=str)
@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_quote_that_swallows_rows_is_told_and_the_rows_are_read(
    tmp_path: Path, order: list[str], separator: str
) -> None:
    rows = [("0.jpg", '"Stop'), ("1.jpg", "a dog"), ("2.png", 'he said go"'), ("3.jpg", "a cat")]
    lines = [dict(zip(("image", "caption"), row, strict=True)) for row in rows]
    text = "\n".join([separator.join(order)] + [separator.join(r[c] for c in order) for r in lines])
    found, reasons = read(write(tmp_path / f"t.{'csv' if separator == ',' else 'tsv'}", text))
    assert found == {"1": ["a dog"], "2": ['he said go"'], "3": ["a cat"]}
    assert list(reasons) == ["line 2"]


def test_a_caption_of_several_lines_is_no_swallowed_row(tmp_path: Path) -> None:
    caption = "a dog, brown\nand a cat, grey.\nsee b, or c.jpg"
    table = write(tmp_path / "t.csv", f'image,caption\na.jpg,"{caption}"\n')
    assert read(table) == ({"a": [caption]}, {})


@pytest.mark.parametrize(
    "order",
    [(0, 1, 2), (1, 2, 0), (2, 1, 0), (2, 0, 1)],
    ids=[
        "key, caption, image",
        "caption, image, key",
        "image, caption, key",
        "image, key, caption",
    ],
)
@pytest.mark.parametrize(("separator", "is_base64"), [("\t", True), ("\t", False), (",", True)])
def test_a_quote_that_swallows_rows_of_any_image_is_told(
    tmp_path: Path, order: tuple[int, ...], separator: str, is_base64: bool
) -> None:
    captions = ["a dog", '"Happy Birthday cake', "two cats", "a red car", 'a tv of 12"', "a horse"]
    rows = [
        (f"k{i}", c, base64.b64encode(IMAGES[i % 4]).decode() if is_base64 else f"img{i}")
        for i, c in enumerate(captions)
    ]
    text = "".join(separator.join(row[i] for i in order) + "\n" for row in rows)
    numbers = [str(order.index(i) + 1) for i in range(3)]
    columns = TableColumns(key=numbers[0], captions=(numbers[1],), image=numbers[2])
    table = write(tmp_path / f"t.{'tsv' if separator == chr(9) else 'csv'}", text)
    found, reasons = read(table, columns)
    assert found == {f"k{i}": [c] for i, c in enumerate(captions) if i != 1}
    assert list(reasons) == ["line 2"]
    if is_base64:
        expected = {f"k{i}": IMAGES[i % 4] for i in range(6) if i != 1}
        assert images_of(table, columns) == expected


@pytest.mark.parametrize("separator", ["\t", ","])
def test_rows_that_a_quote_swallows_into_another_column_are_read(
    tmp_path: Path, separator: str
) -> None:
    rows = [("0.jpg", '"Stop', "x"), ("1.jpg", "a dog", "y"), ("2.jpg", "z", 'go"')]
    text = "\n".join(map(separator.join, [("image", "caption", "title"), *rows]))
    found, reasons = read(write(tmp_path / f"t.{'tsv' if separator == chr(9) else 'csv'}", text))
    assert found == {"1": ["a dog"], "2": ["z"]}
    assert list(reasons) == ["line 2"]


@pytest.mark.parametrize("order", [["image", "caption"], ["caption", "image"]], ids=str)
def test_a_caption_of_several_lines_between_tabs_is_no_swallowed_row(
    tmp_path: Path, order: list[str]
) -> None:
    captions = ["a dog\nand a cat", "a\tb", "one\n\ntwo\tthree four\n"]
    table = tmp_path / "t.tsv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*order, "url"], delimiter="\t")
        writer.writeheader()
        for i, caption in enumerate(captions):
            writer.writerow({"image": f"{i}.jpg", "caption": caption, "url": "-"})
    assert read(table) == ({str(i): [c.strip()] for i, c in enumerate(captions)}, {})


def test_many_stray_quotes_are_each_told_with_their_line(tmp_path: Path) -> None:
    rows = "".join(f'{i}.jpg,"{i}\n' if i % 2 else f'{i}.jpg,{i}"\n' for i in range(1, 7))
    found, reasons = read(write(tmp_path / "t.csv", "image,caption\n" + rows))
    assert found == {str(i): [f'{i}"'] for i in (2, 4, 6)}
    assert list(reasons) == ["line 2", "line 4", "line 6"]


# -- pictures inside


def jpeg() -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(sink, "JPEG")
    return sink.getvalue()


def images_of(path: Path, columns: TableColumns | None = None) -> dict[str, bytes]:
    """Bytes of the image of each sample, by key."""
    source = open_source(path, columns=columns)
    return {
        sample.key: read_image_bytes(
            ImageLocation(
                path=source.root / sample.path,
                offset=sample.offset,
                length=sample.length,
                file_bytes=sample.num_bytes,
            )
        )
        for sample in source.scan()
        if isinstance(sample, Sample)
    }


IMAGES = [jpeg() for _ in range(4)]
BASE64 = {
    "plain": lambda data: base64.b64encode(data).decode(),
    "in lines": lambda data: base64.encodebytes(data).decode(),
    "url": lambda data: f"data:image/jpeg;base64,{base64.b64encode(data).decode()}",
    "without padding": lambda data: base64.b64encode(data).decode().rstrip("="),
}


@pytest.mark.parametrize("form", BASE64.values(), ids=BASE64)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_an_image_in_base64_is_read_out_of_the_table(
    tmp_path: Path, kind: str, form: Callable[[bytes], str]
) -> None:
    images = [IMAGES[i] for i in (0, 1, 1, 2, 0)]
    rows = [{"image": form(data), "caption": f"é {i}"} for i, data in enumerate(images)]
    table = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        table.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif kind == "json":
        table.write_text(json.dumps(rows, indent=2))
    else:
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, ["image", "caption"], delimiter="\t" if kind == "tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    assert list(images_of(table).values()) == images
    assert read(table)[0] == {f"t/{i}": [f"é {i}"] for i in range(5)}


def test_base64_in_an_object_in_a_list_and_with_escaped_slashes_is_read(tmp_path: Path) -> None:
    texts = [base64.b64encode(data).decode() for data in IMAGES]
    values = [{"bytes": texts[0], "path": "gone.jpg"}, [{"bytes": texts[1]}], "a.jpg", texts[2]]
    rows = [json.dumps({"image": value, "id": i}) for i, value in enumerate(values)]
    rows[3] = rows[3].replace("/", "\\/")  # as PHP writes it
    (tmp_path / "a.jpg").write_bytes(IMAGES[3])
    table = write(tmp_path / "t.jsonl", "\n".join(rows))
    expected = {"0": IMAGES[0], "1": IMAGES[1], "2": IMAGES[3], "3": IMAGES[2]}
    assert images_of(table) == expected


def test_a_column_called_base64_is_the_image(tmp_path: Path) -> None:
    text = base64.urlsafe_b64encode(IMAGES[0]).decode()
    assert images_of(write(tmp_path / "t.csv", f"id,base64\n7,{text}\n")) == {"7": IMAGES[0]}


def test_base64_that_cannot_be_found_or_read_is_one_short_line_a_row(tmp_path: Path) -> None:
    text = base64.b64encode(IMAGES[0]).decode()
    values: list[object] = [{"bytes": [1, 2]}, "x" * 300, text]
    rows = "".join(json.dumps({"image": value}) + "\n" for value in values)
    found, reasons = read(write(tmp_path / "t.jsonl", rows, "utf-16"))
    assert found == {}
    assert list(reasons) == ["line 1", "line 2", "line 3"]
    assert all(len(reason) < 200 for reason in reasons.values())
    for words, reason in zip(
        ("bytes", "300 bytes", "save the table as UTF-8"), reasons.values(), strict=True
    ):
        assert words in reason


def test_base64_in_a_parquet_table_asks_for_a_column_of_bytes(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": [base64.b64encode(IMAGES[0]).decode()]}), tmp_path / "t.parquet"
    )
    assert "in a column of type binary" in read(tmp_path / "t.parquet")[1]["row 1"]


def test_rows_that_repeat_base64_under_one_name_say_that_it_is_one_image(tmp_path: Path) -> None:
    texts = [base64.b64encode(data).decode() for data in IMAGES]
    values = [(0, "a"), (0, "a"), (1, "a"), (0, "b")]
    rows = [{"image": {"bytes": texts[i], "path": name}} for i, name in values]
    table = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    ids = [item.image_id for item in open_source(table).scan() if isinstance(item, Sample)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_a_parquet_table_takes_paths_in_objects(tmp_path: Path) -> None:
    values = [{"path": "a.jpg"}, {"path": "b.jpg"}]
    pq.write_table(pa.table({"image": values}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == ({"a": [], "b": []}, {})


@pytest.mark.parametrize(
    "value", [["a.jpg"], {"path": "a.jpg"}, {"path": "a.jpg", "bytes": None}, [{"path": "a.jpg"}]]
)
def test_one_path_in_a_list_or_an_object_is_the_path(tmp_path: Path, value: object) -> None:
    assert read(write(tmp_path / "t.jsonl", json.dumps({"image": value}))) == ({"a": []}, {})


def test_several_paths_in_one_row_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "t.jsonl", json.dumps({"image": ["a.jpg", "b.jpg"]}))
    assert read(table)[1]["line 1"].startswith("the row names 2 images, expected one")


# -- keys


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (uuid.UUID(int=2**127).bytes, "80000000-0000-0000-0000-000000000000"),
        (b"\xff\x00", "ff00"),
        (b" text ", "text"),
        (decimal.Decimal("12345678901234567890123"), "12345678901234567890123"),
        (decimal.Decimal("1E+3"), "1000"),
        (2.0**60, "1152921504606846976"),
        (12.0, "12"),
        (0.5, "0.5"),
        (datetime.datetime(2024, 1, 2, 3, 4, 5), "2024-01-02T03:04:05"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (float("nan"), None),
    ],
)
def test_a_key_of_another_type_is_its_usual_text(value: object, text: str | None) -> None:
    assert clean_name(value, "the key") == text


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}, float("inf"), "k" * 5000])
def test_what_is_no_name_is_refused_in_one_short_line(value: object) -> None:
    with pytest.raises(ValueError, match="the key") as error:
        clean_name(value, "the key")
    assert len(str(error.value)) < 120


def test_keys_of_a_parquet_table_are_their_usual_text(tmp_path: Path) -> None:
    stamps = [datetime.datetime(2024, 1, day) for day in (1, 2)]
    columns = {"id": pa.array(stamps, pa.timestamp("us")), "image": ["a.jpg", "b.jpg"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert list(read(tmp_path / "t.parquet")[0]) == ["2024-01-01T00:00:00", "2024-01-02T00:00:00"]
