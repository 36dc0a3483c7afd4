"""Labels, templates and the prompts made of them."""

import json
from pathlib import Path

import pytest

from siglip2_cache.errors import SourceError
from siglip2_cache.precompute.planning.prompt_files import (
    read_labels,
    read_templates,
    refuse_repeats,
)
from siglip2_cache.precompute.planning.prompts import Label, Prompt, Template, make_prompts


def put(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8-sig")
    return path


def labels_in(path: Path) -> list[tuple[str, str, str | None]]:
    return [(label.label, label.name, label.lang) for label in read_labels(path)]


def templates_in(path: Path) -> list[tuple[str, str | None]]:
    return [(template.text, template.lang) for template in read_templates(path)]


def texts_of(labels: list[tuple[str, str, str | None]], templates: list[str]) -> list[str]:
    """Prompts of (label, name, lang) and ``lang:template``."""
    parts = [template.rpartition(":") for template in templates]
    prompts = make_prompts(
        [Label(label=label, name=name, lang=lang) for label, name, lang in labels],
        [Template(text=text, lang=lang or None) for lang, _, text in parts],
    )
    return [prompt.text for prompt in prompts]


# --- labels -------------------------------------------------------------------------------------

BOTH = [("dog", "dog", "en"), ("dog", "Hund", "de"), ("cat", "cat", "en"), ("cat", "Katze", "de")]


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("l.txt", " dog \n\nsea lion\n", [("dog", "dog", None), ("sea lion", "sea lion", None)]),
        ("l.json", ["dog", 7], [("dog", "dog", None), ("7", "7", None)]),
        ("l.json", {"en": ["dog", "cat"], "de": ["Hund", "Katze"]}, BOTH),
        (
            "l.json",
            {"dog": {"en": "dog", "de": "Hund"}, "cat": {"en": "cat", "de": "Katze"}},
            BOTH,
        ),
        ("l.json", {"n02": "dog", "n01": "cat"}, [("n02", "dog", None), ("n01", "cat", None)]),
        ("l.csv", "label,name,lang\nn1,dog,en\nn1,Hund,de\nn2,,\n",
         [("n1", "dog", "en"), ("n1", "Hund", "de"), ("n2", "n2", None)]),
        ("l.tsv", "class\tn\ndog\t1\n", [("dog", "dog", None)]),
        ("l.jsonl", '{"label": 3, "name": "dog"}\n{"label": "cat"}\n',
         [("3", "dog", None), ("cat", "cat", None)]),
    ],
)  # fmt: skip
def test_labels_are_read_from_every_kind_of_file(
    tmp_path: Path, name: str, content: object, labels: list[tuple[str, str, str | None]]
) -> None:
    assert labels_in(put(tmp_path, name, content)) == labels


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("l.txt", "dog\ncat\n\n dog\n", "line 1 and {} line 4"),
        ("l.json", ["dog", "cat", "dog"], "item 1 and {} item 3"),
        ("l.json", {"en": ["dog", "dog"], "de": ["x", "y"]}, "en item 1 and {} en item 2"),
        ("l.csv", 'label,name\n"dog",a\ncat,\n"dog",b\n', "line 2 and {} line 4"),
    ],
)
def test_a_label_that_stands_twice_is_refused_with_both_places(
    tmp_path: Path, name: str, content: object, places: str
) -> None:
    path = put(tmp_path, name, content)
    with pytest.raises(SourceError) as caught:
        refuse_repeats(read_labels(path))
    of_language = " in en" if "en item" in places else ""
    places = places.format(path)
    assert str(caught.value) == f"label 'dog'{of_language} is there twice: {path} {places}"


def test_two_classes_may_share_a_name_in_a_second_language(tmp_path: Path) -> None:
    path = put(tmp_path, "l.json", {"en": ["crane bird", "crane"], "de": ["Kran", "Kran"]})
    assert [name for _, name, _ in labels_in(path)] == ["crane bird", "Kran", "crane", "Kran"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"dog\ncaf\xe9\n", r"l\.txt line 2 is not UTF-8; save the file as UTF-8"),
        ("l.txt", " \n", r"l\.txt is empty; expected at least one line"),
        ("l.json", [], r"l\.json is empty"),
        ("l.json", b'["caf\xe9"]', r"l\.json is not UTF-8"),
        ("l.json", '["dog",\n', r"l\.json: malformed JSON \(expecting value at line 2 column 1\)"),
        ("l.json", "7", r"l\.json holds a number, expected a list or an object"),
        ("l.json", ["dog", None], r"l\.json item 2: the label is empty"),
        ("l.json", [["dog"]], r"l\.json item 1: the label is a list, expected text"),
        ("l.json", {"dog": {"de": None}}, r"label 'dog' in de: the name is empty"),
        ("l.json", {"dog": ["a"], "cat": "b"}, r"label 'dog': the name is a list, expected text"),
        ("l.json", {"en": ["a", "b"], "de": ["c"]}, "numbers of names: 2 in en, 1 in de"),
        ("l.json", '{"a": "b", "a": "c"}', r"l\.json: the name 'a' is there twice in one object"),
        ("l.csv", "dog\ncat\n", r"l\.csv has no column 'label', it has 'dog'; a \.csv or \.tsv"),
        ("l.csv", "label,name\n ,dog\n", r"l\.csv line 2: the label is empty"),
        ("l.csv", "label,name\na,b,c\n", r"l\.csv line 2: 3 cells, but 2 columns"),
        ("l.csv", "label,name\n", r"l\.csv is empty"),
        ("l.jsonl", '{"label": "a"}\n{\n', r"l\.jsonl line 2: malformed JSON"),
        ("l.xml", "<a/>", r"l\.xml is not a supported kind of file; expected \.txt, \.json, \.csv"),
    ],
)
def test_a_wrong_labels_file_is_refused_with_the_place(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        read_labels(put(tmp_path, name, content))


def test_a_missing_labels_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no file .*/l\.txt; expected a file ending in"):
        read_labels(tmp_path / "l.txt")


# --- templates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "templates"),
    [
        ("t.txt", "a {}.\n\n {} \n", [("a {}.", None), ("{}", None)]),
        ("t.json", ["a {}", "{x} {}"], [("a {}", None), ("{x} {}", None)]),
        (
            "t.json",
            {"en": ["a {}"], "de": ["ein {}", "{}"]},
            [("a {}", "en"), ("ein {}", "de"), ("{}", "de")],
        ),
        ("t.csv", 'template,lang\n"a {}, b",en\n{},\n', [("a {}, b", "en"), ("{}", None)]),
        ("t.jsonl", '{"template": "a {}", "lang": "en"}\n', [("a {}", "en")]),
    ],
)
def test_templates_are_read_from_every_kind_of_file(
    tmp_path: Path, name: str, content: object, templates: list[tuple[str, str | None]]
) -> None:
    assert templates_in(put(tmp_path, name, content)) == templates


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "a {}\na dog\n", r"t\.txt line 2: template 'a dog' has {} 0 times; expected"),
        ("t.txt", "{} or {}\n", r"t\.txt line 1: template '{} or {}' has {} 2 times"),
        ("t.json", {"de": ["ein {}", "{c}"]}, r"t\.json de item 2: template '{c}' has {} 0"),
        ("t.json", {"de": "ein {}"}, r"the templates in 'de' are text, expected a list"),
        ("t.csv", "template,lang\n,en\n", r"t\.csv line 2: template '' has {} 0 times"),
        ("t.jsonl", '{"template": 3}\n', r"t\.jsonl line 1: the template is a number, expected"),
        ("t.txt", "a {}\na {}\n", r"template 'a {}' is there twice: .* line 1 and .* line 2$"),
    ],
)  # fmt: skip
def test_a_wrong_templates_file_is_refused_with_the_place(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        read_templates(put(tmp_path, name, content))


# --- prompts ------------------------------------------------------------------------------------


def test_every_class_goes_into_every_template() -> None:
    labels = [Label(label="n2", name="dog"), Label(label="n1", name="cat")]
    templates = [Template(text="a {}."), Template(text="{}!")]
    assert list(make_prompts(labels, templates)) == [
        Prompt(label="n2", template="a {}.", lang=None, text="a dog."),
        Prompt(label="n2", template="{}!", lang=None, text="dog!"),
        Prompt(label="n1", template="a {}.", lang=None, text="a cat."),
        Prompt(label="n1", template="{}!", lang=None, text="cat!"),
    ]


def test_braces_in_a_name_or_template_stay_as_they_are() -> None:
    assert texts_of([("a", "{0} {}", None)], ["{x} {} {{"]) == ["{x} {0} {} {{"]


def test_a_template_of_a_language_takes_the_names_of_that_language() -> None:
    labels = [("dog", "dog", "en"), ("dog", "Hund", "DE"), ("dog", "perro", "es")]
    assert texts_of(labels, ["de:ein {}", "en:a {}"]) == ["ein Hund", "a dog"]


def test_a_template_without_language_takes_every_name() -> None:
    labels = [Label(label="dog", name="dog"), Label(label="dog", name="Hund", lang="de")]
    templates = [Template(text="{}!"), Template(text="ein {}", lang="de")]
    assert [(prompt.text, prompt.lang) for prompt in make_prompts(labels, templates)] == [
        ("dog!", None),
        ("Hund!", "de"),
        ("ein Hund", "de"),
    ]


def test_a_name_without_language_stands_in_for_a_missing_one() -> None:
    labels = [("vw", "VW", None), ("dog", "dog", None), ("dog", "Hund", "de")]
    assert texts_of(labels, ["de:ein {}"]) == ["ein VW", "ein Hund"]


def test_a_class_without_a_name_in_the_language_of_a_template_is_refused(tmp_path: Path) -> None:
    labels = read_labels(put(tmp_path, "l.csv", "label,lang\ndog,en\ndog,fr\n"))
    templates = read_templates(put(tmp_path, "t.json", {"en": ["a {}"], "de": ["ein {}"]}))
    message = (
        r"label 'dog' has no name in de, the language of template 'ein {}' "
        r"\(.*t\.json de item 1\); it has en, fr \(.*l\.csv line 2\): "
        r"add the name, or leave the template out"
    )
    with pytest.raises(SourceError, match=message):
        list(make_prompts(labels, templates))
