"""Which columns and fields are captions, by their names, and which of their values."""

import json

import pytest

from siglip2_cache.precompute.sources.fields.caption_lists import read_written
from siglip2_cache.precompute.sources.fields.captions import clean_captions, has_words
from siglip2_cache.precompute.sources.fields.columns import TableColumns, find_columns
from siglip2_cache.precompute.sources.fields.row_fields import read_fields


def captions_of(row: dict[str, object], columns: TableColumns | None = None) -> list[str]:
    found = find_columns(tuple(row), columns or TableColumns())
    fields = read_fields(row, found)
    assert fields.reasons == ()
    return [c.text if c.lang is None else f"{c.lang}: {c.text}" for c in fields.captions]


@pytest.mark.parametrize(
    "name",
    [
        *("caption", "Captions", "TEXT", "texts", "Caption Text", "blip_caption", "topCaption"),
        *("re-caption", "caption_1", "caption2", "caption_llava_short", "all_captions"),
        *("caption.original", "Image Caption", "captions/long"),
    ],
)
def test_a_name_that_says_caption_is_one_beside_others(name: str) -> None:
    assert captions_of({"image": "x", "text ": "a", name: "a dog"}) == ["a", "a dog"]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "caption_url",
            "caption_id",
            "caption_1_score",
            "num_captions",
            "has_caption",
            "captioned",
        ),
        *("caption_model", "caption-embedding", "textual", "ocr_text", "captionLength", "title"),
    ],
)
def test_a_name_that_says_a_fact_of_a_caption_is_none(name: str) -> None:
    assert captions_of({"caption": "a dog", name: "thing"}) == ["a dog"]


@pytest.mark.parametrize("value", ["0.93", "", "True", "nan", "http://x.org/a", 7, 0.5, None, True])
def test_a_number_or_an_identifier_in_such_a_column_is_no_caption(value: object) -> None:
    assert captions_of({"caption": "a dog", "caption_x": value}) == ["a dog"]


@pytest.mark.parametrize(
    ("row", "captions"),
    [
        pytest.param({"title": "t", "prompt": "p", "alt": "a"}, ["t", "a"], id="no prompt beside"),
        pytest.param({"prompt": "p"}, ["p"], id="a prompt alone"),
        pytest.param({"title": "IMG_0042"}, [], id="a title that is a file name"),
        pytest.param({"title": "IMG_0042.jpg", "alt": "a dog"}, ["a dog"], id="beside an alt"),
        pytest.param({"title": "der 2. Hund"}, ["der 2. Hund"], id="digits among words"),
        pytest.param({"title": "3只狗"}, ["3只狗"], id="digits without spaces"),
        pytest.param({"comment": "a dog", "comment_number": "0"}, ["a dog"], id="Flickr30k"),
        pytest.param({"caption_id": "7", "title": "a dog"}, ["a dog"], id="an id hides no title"),
        pytest.param({"blip_caption_de": "Hund"}, ["de: Hund"], id="a language behind"),
        pytest.param({"caption_id": 48271, "caption_de": "Hund"}, ["de: Hund"], id="a number"),
        pytest.param({"caption_no": "en hund"}, ["no: en hund"], id="Norwegian"),
        pytest.param({"caption:id": "anjing"}, ["id: anjing"], id="a colon says language"),
        pytest.param({"caption": {"id": "77", "de": "Hund"}}, ["de: Hund"], id="by language"),
    ],
)
def test_what_a_row_has_for_captions(row: dict[str, object], captions: list[str]) -> None:
    assert captions_of(row) == captions


def test_a_column_that_is_told_is_taken_as_it_is() -> None:
    columns = TableColumns(captions=("title", "caption_id"))
    assert captions_of({"title": "IMG_1", "caption_id": "7", "text": "no"}, columns) == [
        *("IMG_1", "id: 7"),
    ]


LLAVA = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "<image>\nA dog.\n"},
    {"from": "human", "value": "Sure?"},
    {"from": "gpt", "value": "Yes."},
]
OPENAI = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
]


@pytest.mark.parametrize("name", ["conversations", "messages"])
@pytest.mark.parametrize("is_written", [False, True])
def test_of_a_conversation_the_model_says_the_captions(name: str, is_written: bool) -> None:
    for value, captions in ((LLAVA, ["A dog.", "Yes."]), (OPENAI, ["A dog."])):
        shown = json.dumps(value) if is_written else value
        assert captions_of({"image": "x", name: shown}) == captions


def test_odd_turns_are_no_conversation_and_end_nothing() -> None:
    captions, reasons = clean_captions([([{"from": ["gpt"], "value": {"value": "x"}}], None)])
    assert captions == ()
    assert reasons == []
    _, reasons = clean_captions([([{"from": "gpt"}], None)])
    assert len(reasons) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["a dog", "the dog"]', ["a dog", "the dog"]),
        (' ["a", null] ', ["a", None]),
        ("['a dog', \"the dog's\"]", ["a dog", "the dog's"]),
        ('{"de": "Hund", "en": ["dog"]}', {"de": "Hund", "en": ["dog"]}),
        ('[{"text": "a"}]', [{"text": "a"}]),
        ("['a dog' 'the dog']", "['a dog' 'the dog']"),  # numpy's: Python would make one text of it
        (r"['a \d']", r"['a \d']"),
        ("[photo] a dog", "[photo] a dog"),
        ("[photo]", "[photo]"),
        ("[1, 2]", "[1, 2]"),
        ("['a', __import__('os')]", "['a', __import__('os')]"),
        ("[" * 9999 + "]" * 9999, "[" * 9999 + "]" * 9999),
        ("['" + "(" * 9999 + "]", "['" + "(" * 9999 + "]"),
        ('{"a": 1}', '{"a": 1}'),
    ],
)
def test_a_list_that_is_written_into_a_text_is_a_list(text: str, value: object) -> None:
    assert read_written(text) == value


def test_words_are_told_from_numbers_and_names() -> None:
    assert [has_words(text) for text in ("dog", "2 dogs", "狗", "IMG_1", "12", "!?", "None")] == [
        *(True, True, True, False, False, False, False),
    ]
