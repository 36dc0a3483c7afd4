"""Augmentation of views: the same numbers everywhere, and how they are asked for and recorded."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from siglip2_cache.errors import SettingError
from siglip2_cache.store.format.augmentation import (
    COLUMNS,
    NO_SOLARIZE,
    PRESETS,
    UNCHANGED,
    Augmentation,
    AugmentationPolicy,
    parse_augmentation,
)
from siglip2_cache.store.format.views import WHOLE_IMAGE, ViewPolicy, draw_view, draw_views

STRONG = ViewPolicy(num_views=4, augmentation=PRESETS["strong"])
KEYS = [f"key {i}" for i in range(500)]

# Committed numbers: a cache holds targets of exactly these views, so they may never change.
GOLDEN = {
    ("a", 1): Augmentation(blur=0.005639092996716499),
    ("a", 2): Augmentation(
        *(1.2312453985214233, 0.7327567338943481, 1.186116099357605, -0.07369740307331085),
        *(False, 0.0, 128),
    ),
    ("Ä", 3): Augmentation(
        *(1.3122410774230957, 0.8543533682823181, 1.0335869789123535, -0.025582363829016685),
        *(False, 0.0, 256),
    ),
}


@pytest.mark.parametrize(("key", "view"), GOLDEN)
def test_the_operations_are_those_of_every_other_machine(key: str, view: int) -> None:
    assert draw_view(STRONG, key, view).augmentation == GOLDEN[key, view]


def test_the_crops_are_those_without_augmentation_and_view_0_is_the_whole_image() -> None:
    plain = replace(STRONG, augmentation=AugmentationPolicy())
    assert draw_view(STRONG, "a", 0) == WHOLE_IMAGE
    for view in (1, 2, 3):
        augmented = draw_view(STRONG, "a", view)
        assert replace(augmented, augmentation=UNCHANGED) == draw_view(plain, "a", view)
    assert draw_views(plain, KEYS).keys().isdisjoint(COLUMNS)


def test_many_at_once_are_those_of_one_at_a_time() -> None:
    columns = draw_views(STRONG, KEYS[:20])
    for row, key in enumerate(KEYS[:20]):
        for view in range(4):
            found = Augmentation(*(columns[name][row, view].item() for name in COLUMNS))
            assert found == draw_view(STRONG, key, view).augmentation


def test_values_have_the_ranges_and_probabilities_asked_for() -> None:
    drawn = {name: each[:, 1:].ravel() for name, each in draw_views(STRONG, KEYS).items()}
    for name, strength in (("brightness", 0.4), ("contrast", 0.4), ("saturation", 0.2)):
        assert np.abs(drawn[name] - 1).max() == pytest.approx(strength, rel=0.02)
        assert np.mean(drawn[name]) == pytest.approx(1, abs=0.02)
    assert np.abs(drawn["hue"]).max() == pytest.approx(0.1, rel=0.02)
    assert np.mean(drawn["brightness"] != 1) == pytest.approx(0.8, abs=0.03)
    assert np.array_equal(drawn["brightness"] != 1, drawn["hue"] != 0)  # jitter is one draw
    assert np.mean(drawn["grayscale"]) == pytest.approx(0.2, abs=0.03)
    assert np.mean(drawn["solarize"] == 128) == pytest.approx(0.2, abs=0.03)
    assert set(drawn["solarize"]) == {128, NO_SOLARIZE}
    blurs = drawn["blur"][drawn["blur"] > 0]
    assert len(blurs) / len(drawn["blur"]) == pytest.approx(0.5, abs=0.03)
    assert blurs.min() * 224 == pytest.approx(0.1, abs=0.02)
    assert blurs.max() * 224 == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("name", ["brightness", "hue", "grayscale", "blur", "solarize"])
def test_an_operation_that_is_not_asked_for_changes_nothing(name: str) -> None:
    others = {each: value for each, value in asdict(PRESETS["strong"]).items() if each != name}
    drawn = draw_views(replace(STRONG, augmentation=AugmentationPolicy(**others)), KEYS[:50])
    assert (drawn[name] == getattr(UNCHANGED, name)).all()


def test_words_are_presets_and_values_and_later_ones_change_earlier_ones() -> None:
    assert parse_augmentation(["strong"]) == PRESETS["strong"]
    found = parse_augmentation(["strong", "solarize=0", "hue=0.05"])
    assert found == replace(PRESETS["strong"], solarize=0, hue=0.05)
    assert str(parse_augmentation(["blur=0.5", "jitter=0"])) == "blur 0.5"
    for nothing in ([], ["none"], ["strong", "none"], ["jitter=1"]):
        assert parse_augmentation(nothing).is_none
        assert str(parse_augmentation(nothing)) == "none"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "weak",
            "augment 'weak' is not none, strong or OPERATION=VALUE, such as hue=0.1, of bright",
        ),
        ("rotate=1", "augment 'rotate=1' is not none, strong or OPERATION=VALUE"),
        ("hue", "augment 'hue' is not"),
        ("hue=much", "augment 'hue=much' is not"),
        ("hue=0.6", "augment hue must be 0 to 0.5, got 0.6"),
        ("blur=-1", "augment blur must be 0 to 1, got -1.0"),
        ("contrast=nan", "augment contrast must be 0 to 1, got nan"),
    ],
)
def test_other_words_and_values_are_refused(word: str, message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        parse_augmentation([word])


def test_the_whole_image_alone_is_not_augmented() -> None:
    with pytest.raises(SettingError, match=r"augment needs at least 2 views: .*; give --views N"):
        ViewPolicy(num_views=1, augmentation=PRESETS["strong"])


def test_a_record_names_augmentation_only_if_there_is_some() -> None:
    assert "augmentation" not in ViewPolicy(num_views=2).to_record()
    assert STRONG.to_record()["augmentation"] == asdict(PRESETS["strong"])
