"""What the hub's metadata say of where a student comes from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from siglip2_cache import siglip
from siglip2_cache.student.export.provenance import (
    base_model_of,
    hub_datasets,
    language_codes,
    license_of,
)


@pytest.fixture
def local(tiny_checkpoint: Path, tmp_path: Path) -> siglip.Checkpoint:
    return replace(siglip.resolve_checkpoint(str(tiny_checkpoint)), folder=tmp_path)


def test_a_local_folder_has_no_base_model_unless_it_was_cut_from_one(
    local: siglip.Checkpoint,
) -> None:
    assert base_model_of(local) is None
    hub = replace(local, given="google/siglip2-base-patch16-224", revision="0" * 40)
    assert base_model_of(hub) == "google/siglip2-base-patch16-224"
    mark = local.folder / "siglip2_cache.json"
    mark.write_text(json.dumps({"base_model": "org/model"}))
    assert base_model_of(local) == "org/model"
    mark.write_text(json.dumps({"base_model": None}))
    assert base_model_of(local) is None


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\ntags:\n- x\n---\n# model\n", "mit"),
        ("---\ntags: [x]\n---\n", None),
        ("---\nlicense: [mit\n---\n", None),
        ("---\n- mit\n---\n", None),
        ("# model\n---\nlicense: mit\n---\n", None),
    ],
)
def test_the_license_is_that_of_the_card(
    local: siglip.Checkpoint, card: str, expected: str | None
) -> None:
    (local.folder / "README.md").write_text(card)
    assert license_of(local) == expected


def test_googles_checkpoints_have_their_license_without_a_card(local: siglip.Checkpoint) -> None:
    assert license_of(local) is None
    hub = replace(local, given="google/siglip2-base-patch16-224", revision="0" * 40)
    assert license_of(hub) == "apache-2.0"
    assert license_of(replace(hub, given="ann/siglip2")) is None


def test_a_license_goes_on_to_what_was_cut_or_trained_from_a_checkpoint(
    local: siglip.Checkpoint,
) -> None:
    (local.folder / "siglip2_cache.json").write_text('{"base_model": "org/m", "license": "mit"}')
    assert (base_model_of(local), license_of(local)) == ("org/m", "mit")


def test_only_corpora_of_the_hub_are_named() -> None:
    places = [
        "hf://datasets/nlphuji/flickr30k/data/a.parquet",
        "/home/ann/photos",
        "hf://datasets/nlphuji/flickr30k@main/data",
        "s3://bucket/hf://datasets/a/b",
        "hf://datasets/org/other",
    ]
    assert hub_datasets(places) == ["nlphuji/flickr30k", "org/other"]


def test_languages_are_codes_without_regions() -> None:
    langs = ["en", "de-AT", "zh_Hans", None, "EN", "klingon", "xx1", ""]
    assert language_codes(langs) == ["de", "en", "zh"]
