"""Which columns and fields are captions, by their names, and which of their values."""

import json

import pytest

from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.sources.fields.caption_lists import read_written
from siglip2_cache.precompute.sources.fields.captions import CaptionValue, clean_captions, has_words
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
    captions, reasons = clean_captions([CaptionValue([{"from": ["gpt"], "value": {"value": "x"}}])])
    assert captions == ()
    assert reasons == []
    _, reasons = clean_captions([CaptionValue([{"from": "gpt"}])])
    assert len(reasons) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["a dog", "the dog"]', ["a dog", "the dog"]),
        (' ["a", null] ', ["a", None]),
        ("['a dog', \"the dog's\"]", ["a dog", "the dog's"]),
        ('{"de": "Hund", "en": ["dog"]}', {"de": "Hund", "en": ["dog"]}),
        ('[{"text": "a"}]', [{"text": "a"}]),
        ("['a dog' 'the dog']", ["a dog", "the dog"]),  # numpy's: Python would make one text of it
        ("""['two birds'\n "it's"]""", ["two birds", "it's"]),
        (r"""[ 'a\n"b"' None nan 'c\'s ] [' ]""", ['a\n"b"', None, None, "c's ] ["]),
        ("""['a "dog" "cat"', nan, 'b']""", ['a "dog" "cat"', None, "b"]),
        ("{'a' 'b']", "{'a' 'b']"),
        ("[None nan]", "[None nan]"),
        ('["Untitled" by "X"]', '["Untitled" by "X"]'),
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


@pytest.mark.parametrize(
    "text", ["['a' 'b' ... 'z']", r"['a' '\d']", r"['a' '\x']", "['a', 'b' 'c']"]
)
def test_a_list_without_commas_that_cannot_be_read_is_no_caption(text: str) -> None:
    row = {"caption": text, "title": "a dog", "caption_2": "a cat", "lang": text}
    fields = read_fields(row, find_columns(tuple(row), TableColumns()))
    assert [caption.text for caption in fields.captions] == ["a cat"]
    reason = f"a list that lacks commas and cannot be read; write it as JSON: {text!r}..."
    assert fields.reasons == (f"a caption is {reason}", f"a language is {reason}")


def test_words_are_told_from_numbers_and_names() -> None:
    assert [has_words(text) for text in ("dog", "2 dogs", "狗", "IMG_1", "12", "!?", "None")] == [
        *(True, True, True, False, False, False, False),
    ]


def kinds_of(
    row: dict[str, object], columns: TableColumns | None = None
) -> list[tuple[str, str | None, str | None]]:
    fields = read_fields(row, find_columns(tuple(row), columns or TableColumns()))
    assert fields.reasons == ()
    return [(c.text, c.lang, c.kind) for c in fields.captions]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param(
            {"caption": ["a", "b"], "caption_kind": ["alt", None]},
            [("a", None, "alt"), ("b", None, None)],
            id="a list as long as the captions",
        ),
        pytest.param(
            {"captions": ["a", "b"], "caption_kinds": " alt ", "lang": "en"},
            [("a", "en", "alt"), ("b", "en", "alt")],
            id="one for all",
        ),
        pytest.param(
            {
                "caption": [{"text": "a", "kind": "long", "lang": "de"}, "b"],
                "caption_kind": "alt",
            },
            [("a", "de", "long"), ("b", None, "alt")],
            id="that of an object before the column",
        ),
        pytest.param(
            {"caption": {"text": ["a", "b"], "kind": ["alt", "long"], "lang": "en"}},
            [("a", "en", "alt"), ("b", "en", "long")],
            id="an object of lists",
        ),
        pytest.param(
            {"caption": '[{"text": "a", "caption_kind": "x"}]', "caption_kind": ""},
            [("a", None, "x")],
            id="written into a text",
        ),
        pytest.param(
            {"caption": {"de": "a", "en": [{"text": "b", "kind": "x"}]}},
            [("a", "de", None), ("b", "en", "x")],
            id="by language",
        ),
        pytest.param(
            {"caption": ["a", {"text": "a", "kind": "x"}, "a"]},
            [("a", None, None), ("a", None, "x")],
            id="one text of two kinds",
        ),
        pytest.param({"text": "a", "kind": "dog"}, [("a", None, None)], id="another kind"),
    ],
)
def test_a_caption_has_the_kind_that_the_corpus_says(
    row: dict[str, object], expected: list[tuple[str, str | None, str | None]]
) -> None:
    assert kinds_of({"image": "x", **row}) == expected


def test_a_named_column_may_give_its_captions_a_kind() -> None:
    row: dict[str, object] = {"image": "x", "alt": "a", "re_caption_de": ["b", "c"], "k": "z"}
    columns = TableColumns(captions=("alt", "re_caption_de=synthetic"))
    assert kinds_of(row, columns) == [
        ("a", None, None),
        ("b", "de", "synthetic"),
        ("c", "de", "synthetic"),
    ]
    assert columns.named() == ("alt", "re_caption_de")
    other = TableColumns(captions=columns.captions, kind="k")
    assert [kind for *_, kind in kinds_of(row, other)] == ["z", "synthetic", "synthetic"]
    for wrong in ("=alt", "alt=", "="):
        with pytest.raises(SettingError, match="is not COLUMN or COLUMN=KIND"):
            TableColumns(captions=(wrong,))


def test_kinds_that_do_not_fit_the_captions_are_left_out_and_told() -> None:
    for kind, reason in (
        (["alt"], "2 captions but 1 kinds; the captions are kept without kind"),
        (3, "a kind is a number, expected text"),
    ):
        row: dict[str, object] = {"image": "x", "caption": ["a", "b"], "caption_kind": kind}
        fields = read_fields(row, find_columns(tuple(row), TableColumns()))
        assert [c.kind for c in fields.captions] == [None, None]
        assert fields.reasons == (reason,)
