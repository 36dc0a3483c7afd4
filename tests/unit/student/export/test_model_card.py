"""The model card: what it tells, and that no name can break it."""

import dataclasses
from typing import Any

import pytest

from siglip2_cache.errors import SettingError
from siglip2_cache.student.export.model_card import CacheSummary, ModelCard, render_card

CARD = ModelCard(
    name="small student",
    student="google/siglip2-base-patch16-224",
    base_model="google/siglip2-base-patch16-224",
    teachers=["google/siglip2-so400m-patch14-224"],
    cache=CacheSummary(
        samples=12_345, captions=61_000, texts=60_999, views=4, corpora=["webdataset", "parquet"]
    ),
    objectives={"soft": 1.0, "cosine": 38.0, "contrastive": 0.1, "bank": 0.0},
    steps=2_000,
    global_batch_size=4_096,
    towers="both",
    results=[("R@1 image to text", 0.521, 0.4212345, 0.5), ("gallery", 500, "500", None)],
    versions={"torch": "2.13.0", "transformers": "5.23.0"},
)


def render(card: ModelCard = CARD, tokenizer_class: str | None = "AutoTokenizer") -> str:
    return render_card(
        card,
        text_class=None,
        tokenizer_class=tokenizer_class,
        max_text_tokens=64,
        has_pipeline=True,
        has_sentence_transformers=True,
    )


def front_matter(text: str) -> dict[str, Any]:
    """Parse the front matter with the parser that the hub uses."""
    import yaml

    head = text.split("---\n")
    assert head[0] == ""
    return yaml.safe_load(head[1])


def cells(line: str) -> list[str]:
    """Split a line of a table at the bars that are not escaped."""
    parts = line.replace("\\\\", "\0").replace("\\|", "\1").split("|")
    return [part.strip().replace("\1", "|").replace("\0", "\\") for part in parts[1:-1]]


def test_the_front_matter_says_what_the_hub_asks() -> None:
    assert front_matter(render()) == {
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["siglip", "distillation", "siglip2-cache"],
        "base_model": "google/siglip2-base-patch16-224",
        "base_model_relation": "finetune",
    }


def test_license_datasets_and_languages_are_named_where_they_are_known() -> None:
    named = dataclasses.replace(
        CARD, license="apache-2.0", datasets=["nlphuji/flickr30k"], languages=["de", "en"]
    )
    text = render(named)
    fields = front_matter(text)
    assert fields["license"] == "apache-2.0"
    assert fields["datasets"] == ["nlphuji/flickr30k"]
    assert fields["language"] == ["de", "en"]
    assert "The license (apache-2.0) of the student checkpoint named above applies." in text
    rows = dict(cells(line) for line in text.splitlines() if len(cells(line)) == 2)
    assert rows["corpora"] == "webdataset, parquet, nlphuji/flickr30k"
    assert rows["languages of captions"] == "de, en"
    assert "The license of the student checkpoint named above applies." in render()


def test_a_student_from_a_local_folder_has_no_base_model_and_no_path() -> None:
    local = dataclasses.replace(CARD, student="/home/ann/run7/model", base_model=None)
    text = render(local)
    assert "base_model" not in front_matter(text)
    assert "`model` trained with siglip2-cache on cached" in text
    assert "/home" not in text


def test_an_image_tower_is_tagged_as_one() -> None:
    text = render(tokenizer_class=None)
    assert front_matter(text)["pipeline_tag"] == "image-feature-extraction"
    assert "pipeline(" not in text
    assert "logit scale" in text


def test_the_card_tells_data_teacher_objectives_and_versions() -> None:
    text = render()
    rows = dict(cells(line) for line in text.splitlines() if len(cells(line)) == 2)
    assert rows["data"] == "12,345 samples, 61,000 captions, 60,999 unique texts"
    assert rows["views per image"] == "4"
    assert rows["corpora"] == "webdataset, parquet"
    assert rows["loss terms (weight)"] == "soft 1, cosine 38, contrastive 0.1"  # no bank
    assert rows["steps"] == "2,000 of 4,096 images"
    assert rows["towers trained"] == "image and text"
    assert rows["versions"] == "torch 2.13.0, transformers 5.23.0"
    assert "teacher `google/siglip2-so400m-patch14-224`" in text
    assert "The license of the student checkpoint" in text


def test_results_stand_side_by_side_and_what_is_not_known_is_na() -> None:
    lines = [cells(line) for line in render().splitlines()]
    start = lines.index(["", "teacher", "student before", "student after"])
    assert lines[start + 2 : start + 4] == [
        ["R@1 image to text", "0.521", "0.4212", "0.5"],
        ["gallery", "500", "500", "n/a"],
    ]
    assert "## Results" not in render(dataclasses.replace(CARD, results=()))


ODD = "a | b \\ `c` *d* <img> [e](f) # --- \n\n# g\u202e\x1b[0m"


def test_no_name_breaks_the_card() -> None:
    odd = dataclasses.replace(
        CARD,
        name=ODD,
        student=ODD,
        teachers=[ODD],
        base_model=None,
        objectives={ODD: 1.0},
        cache=dataclasses.replace(CARD.cache, corpora=[ODD]),
        results=[(ODD, ODD, 0.1, 0.2)],
        versions={ODD: ODD},
    )
    one_row = dataclasses.replace(CARD, base_model=None, results=CARD.results[:1])
    plain, text = render(one_row), render(odd)
    assert front_matter(text) == front_matter(plain)
    assert len(text.splitlines()) == len(plain.splitlines())
    widths = [len(cells(line)) for line in text.splitlines() if line.startswith("|")]
    assert widths == [len(cells(line)) for line in plain.splitlines() if line.startswith("|")]
    title = text.splitlines()[6]
    assert title == (r"# a \| b \\ \`c\` \*d\* \<img\> \[e\](f) \# --- \\n\\n\# g\\u202e\\x1b\[0m")
    assert text.count(title[2:]) == 7  # and in the tables
    assert "trained with siglip2-cache on" in text
    assert "`a | b \\ 'c' *d* <img>" in text  # as code, where only the back quotes would end it


def test_a_base_model_that_is_no_hub_id_is_refused() -> None:
    with pytest.raises(SettingError, match=r"card\.base_model '/home/ann/model' is not a hub id"):
        dataclasses.replace(CARD, base_model="/home/ann/model")
