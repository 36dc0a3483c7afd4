"""The generated corpus: true captions, exact rates, held-out scenes, equal bytes."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from kit.fakes import FakeTeacher, SilentProgress, config_of, tree_of
from PIL import Image

from siglip2_cache import open_cache
from siglip2_cache.demo.captions import Caption, draw_captions, every_caption
from siglip2_cache.demo.corpus import CorpusConfig, CorpusSummary, write_corpus
from siglip2_cache.demo.drawing import COLOUR_JITTER, NOISE, RGB, encode_png
from siglip2_cache.demo.scenes import Layout, Scene, Thing, layouts
from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.build import build

NUM_IMAGES = 300
NOISY = {"missing_rate": 0.3, "mismatched_rate": 0.45}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "captions.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def pixels_of(folder: Path, line: dict[str, Any]) -> np.ndarray:
    with Image.open(folder / line["image"]) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def layout_of(line: dict[str, Any]) -> tuple[str, str, str]:
    """The scene whatever the sizes: (left or upper object, left or above, other object)."""
    large, relation, small = line["scene"]
    if relation in ("left", "above"):
        return large, relation, small
    return small, {"right": "left", "below": "above"}[relation], large


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    write_corpus(CorpusConfig(num_images=NUM_IMAGES, seed=3), folder)
    return folder


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CorpusSummary]:
    folder = tmp_path_factory.mktemp("noisy")
    return folder, write_corpus(CorpusConfig(num_images=NUM_IMAGES, seed=3, **NOISY), folder)


# --- what captions say --------------------------------------------------------------------------

_OBJECT = (
    r"(?:an? (?:(large|small) ?)?\b(?:({colours}) ?)?\b({shapes})|something ({colours}))".format(
        colours="|".join(RGB), shapes="circle|square|triangle|cross"
    )
)
_PLACES = {"left": "(?:to the )?left of", "right": "(?:to the )?right of"}
_PLACES |= {"above": "above|over", "below": "below|under"}
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def is_true(text: str, scene: list[str]) -> bool:
    """Read an English caption, by a grammar of its own, and compare it with the scene."""
    large, relation, small = scene
    found = list(re.finditer(_OBJECT, text))
    assert 1 <= len(found) <= 2, text
    rest = re.sub(_OBJECT, "#", text.removeprefix("an image of "))
    said = next((r for r, words in _PLACES.items() if re.search(rf"\b(?:{words})\b", rest)), None)
    if re.fullmatch(r"(this is a photo of )?#", rest):
        return fits(found[0], large, "large")
    if rest == "# and #":
        orders = [found, found[::-1]]
        return any(fits(a, large, "large") and fits(b, small, "small") for a, b in orders)
    assert said is not None, text
    if rest.endswith("there is #"):  # left of B there is A
        found.reverse()
    if said == relation:
        return fits(found[0], large, "large") and fits(found[1], small, "small")
    is_turned = said == _OPPOSITE[relation]
    return is_turned and fits(found[0], small, "small") and fits(found[1], large, "large")


def fits(found: re.Match[str], name: str, size: str) -> bool:
    colour, shape = name.split()
    said_size, said_colour, said_shape, only_colour = found.groups()
    return (
        said_size in (None, size)
        and (said_colour or only_colour) in (None, colour)
        and said_shape in (None, shape)
    )


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("a red circle left of a blue square", True),
        ("a blue square is to the right of a red circle", True),
        ("left of a small blue square there is a large red circle", True),
        ("an image of something red left of something blue", True),
        ("a circle left of a square", True),
        ("an image of a square and a circle", True),
        ("this is a photo of a red circle", True),
        ("a red circle right of a blue square", False),
        ("left of a red circle there is a blue square", False),
        ("a blue square left of a red circle", False),
        ("a red square left of a blue circle", False),
        ("a small red circle left of a large blue square", False),
        ("a red circle above a blue square", False),
        ("a blue square", False),
    ],
)
def test_the_reader_of_these_tests_tells_true_from_false(text: str, verdict: bool) -> None:
    assert is_true(text, ["red circle", "left", "blue square"]) is verdict


def test_every_english_caption_of_a_clean_corpus_is_true(clean: Path) -> None:
    texts = [
        (caption["text"], line["scene"])
        for line in lines_of(clean)
        for caption in line["captions"]
        if caption["lang"] == "en"
    ]
    assert len(texts) == NUM_IMAGES
    assert [pair for pair in texts if not is_true(*pair)] == []


def test_no_caption_is_vague_where_none_is_asked_for(tmp_path: Path) -> None:
    config = CorpusConfig(num_images=60, held_out=True, vague_rate=0, captions_per_image=20)
    write_corpus(config, tmp_path / "full")
    for line in lines_of(tmp_path / "full"):
        read = [read_full_caption(c["text"], c["lang"]) for c in line["captions"]]
        assert {each and layout_of({"scene": each}) for each in read} == {layout_of(line)}


def test_twenty_vague_captions_can_be_had(tmp_path: Path) -> None:
    config = CorpusConfig(num_images=60, vague_rate=1, captions_per_image=20)
    summary = write_corpus(config, tmp_path / "vague")
    assert summary.num_captions == 60 * 20
    assert summary.num_texts < summary.num_captions  # they fit other layouts too


def test_captions_of_all_kinds_occur_about_as_often_as_said(clean: Path) -> None:
    texts = [c["text"] for line in lines_of(clean) for c in line["captions"] if c["lang"] == "en"]
    is_full = [len(re.findall("|".join(RGB), text)) == 2 and " and " not in text for text in texts]
    has_shapes = [bool(re.search("circle|square|triangle|cross", text)) for text in texts]
    assert 0.5 < np.mean(is_full) < 0.7
    assert 0.9 < np.mean(has_shapes) < 1
    assert any(" and " in text for text in texts)
    assert any("large" in text and "small" in text for text in texts)


# Stems, in the order of RGB and of the shapes of _SHAPES; words that say a relation.
_SHAPES = ("circle", "square", "triangle", "cross")
_COLOUR_STEMS = {
    "en": "red orange yellow green blue purple pink brown white black",
    "de": "rot orange gelb grün blau violett rosa braun weiß schwarz",
    "fr": "rouge orange jaune vert bleu violet rose marron blanc noir",
    "es": "roj naranja amarill verde azul morad rosa marrón blanc negr",
    "zh": "红 橙 黄 绿 蓝 紫 粉 棕 白 黑",
}
_SHAPE_STEMS = {
    "en": "circle square triangle cross",
    "de": "kreis quadrat dreieck kreuz",
    "fr": "cercle carré triangle croix",
    "es": "círculo cuadrado triángulo cruz",
    "zh": "圆形 正方形 三角形 十字形",
}
_RELATION_STEMS = {
    "en": "left right above|over below|under",
    "de": "links rechts über|oberhalb unter",
    "fr": "gauche droite au-dessus dessous",
    "es": "izquierda derecha encima debajo",
    "zh": "左 右 上 下",
}


def read_full_caption(text: str, lang: str) -> tuple[str, str, str] | None:
    """The object spoken of first in the relation, the relation, the other; None of a vague one."""

    def find(stems: str, meanings: tuple[str, ...]) -> list[tuple[int, str]]:
        found = [
            (match.start(), meaning)
            for stem, meaning in zip(stems.split(), meanings, strict=True)
            for match in re.finditer(stem, text.lower())
        ]
        return sorted(found)

    colours = find(_COLOUR_STEMS[lang], tuple(RGB))
    shapes = find(_SHAPE_STEMS[lang], _SHAPES)
    relations = find(_RELATION_STEMS[lang], ("left", "right", "above", "below"))
    if (len(colours), len(shapes), len(relations)) != (2, 2, 1):
        return None
    things = [f"{c} {s}" for (_, c), (_, s) in zip(colours, shapes, strict=True)]
    if relations[0][0] < min(colours[0][0], shapes[0][0]):  # left of B there is A
        things.reverse()
    return things[0], relations[0][1], things[1]


@pytest.mark.parametrize("lang", ["en", "de", "fr", "es", "zh"])
def test_full_captions_are_true_in_every_language(clean: Path, lang: str) -> None:
    num_read = 0
    for line in lines_of(clean):
        large, relation, small = line["scene"]
        [text] = [c["text"] for c in line["captions"] if c["lang"] == lang]
        read = read_full_caption(text, lang)
        if read is not None:
            num_read += 1
            assert read in ((large, relation, small), (small, _OPPOSITE[relation], large)), text
    assert num_read > 0.5 * NUM_IMAGES


@pytest.mark.parametrize(
    ("lang", "scene", "text"),
    [
        ("en", "orange cross above orange square", "an orange cross over an orange square"),
        ("de", "red circle right pink cross",
         "ein Bild von einem großen roten Kreis rechts von einem kleinen rosa Kreuz"),
        ("de", "orange square below red circle", "unter einem roten Kreis ist ein orangefarbenes Quadrat"),
        ("de", "green cross above white cross", "etwas in Grün ist oberhalb von etwas in Weiß"),
        ("fr", "green cross above purple square", "une grande croix verte au-dessus d'un petit carré violet"),
        ("fr", "black triangle left white cross", "à gauche d'une croix blanche il y a un triangle noir"),
        ("fr", "green cross right blue circle", "quelque chose de vert à droite de quelque chose de bleu"),
        ("es", "red circle above white cross",
         "una cruz blanca pequeña está debajo de un círculo rojo grande"),
        ("es", "purple cross left brown cross", "algo morado a la izquierda de algo marrón"),
        ("zh", "red circle left blue square", "一个红色的大圆形在一个蓝色的小正方形的左边"),
        ("zh", "red circle above blue square", "图中红色的东西位于蓝色的东西上面"),
    ],
)  # fmt: skip
def test_articles_genders_and_cases_agree(lang: str, scene: str, text: str) -> None:
    colour, shape, relation, other_colour, other_shape = scene.split()
    shown: Any = Scene(Thing(colour, shape), relation, Thing(other_colour, other_shape))  # type: ignore[arg-type]
    assert Caption(text, lang) in set(every_caption(shown))


def test_captions_are_drawn_from_all_there_are() -> None:
    shown = Scene(Thing("red", "circle"), "left", Thing("blue", "square"))
    drawn = {
        c for i in range(500) for c in draw_captions(shown, 20, Random(f"draw {i}"), vague_rate=0.5)
    }
    assert drawn == set(every_caption(shown))


def test_five_captions_are_of_five_languages_and_ten_of_each_twice(tmp_path: Path) -> None:
    for num_captions in (5, 10):
        folder = tmp_path / str(num_captions)
        config = CorpusConfig(num_images=20, captions_per_image=num_captions)
        write_corpus(config, folder)
        for line in lines_of(folder):
            langs = Counter(caption["lang"] for caption in line["captions"])
            assert langs == dict.fromkeys(("en", "de", "fr", "es", "zh"), num_captions // 5)
            assert len({caption["text"] for caption in line["captions"]}) == num_captions


# --- rates and divisions ------------------------------------------------------------------------


def test_rates_are_exact_and_change_nothing_else(
    clean: Path, noisy: tuple[Path, CorpusSummary]
) -> None:
    folder, summary = noisy
    assert (summary.num_images, summary.num_missing, summary.num_mismatched) == (300, 90, 94)
    pairs = list(zip(lines_of(clean), lines_of(folder), strict=True))
    missing = [dirty for _, dirty in pairs if not dirty["captions"]]
    changed = [d for c, d in pairs if d["captions"] and d["captions"] != c["captions"]]
    assert (len(missing), len(changed)) == (90, 94)
    for clean_line, dirty in pairs:
        assert {**clean_line, "captions": None} == {**dirty, "captions": None}
        assert pixels_of(clean, clean_line).tobytes() == pixels_of(folder, dirty).tobytes()
    assert summary.num_captions == 5 * (300 - 90)
    assert summary.num_texts == len({c["text"] for _, d in pairs for c in d["captions"]})


def test_mismatched_captions_are_those_of_one_other_scene(
    clean: Path, noisy: tuple[Path, CorpusSummary]
) -> None:
    num_read = 0
    for before, line in zip(lines_of(clean), lines_of(noisy[0]), strict=True):
        if not line["captions"] or line["captions"] == before["captions"]:
            continue
        read = [read_full_caption(c["text"], c["lang"]) for c in line["captions"]]
        said = {layout_of({"scene": scene}) for scene in read if scene is not None}
        assert len(said) <= 1
        assert layout_of(line) not in said
        num_read += len(said)
    assert num_read > 80


def test_mismatched_captions_are_never_those_of_the_same_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = layouts(held_out=False)[:2]
    monkeypatch.setattr("siglip2_cache.demo.corpus.layouts", lambda *, held_out: two)
    write_corpus(CorpusConfig(num_images=40, mismatched_rate=1), tmp_path / "two")
    for line in lines_of(tmp_path / "two"):
        read = [read_full_caption(c["text"], c["lang"]) for c in line["captions"]]
        said = {layout_of({"scene": scene}) for scene in read if scene is not None}
        assert layout_of(line) not in said


def test_no_held_out_layout_is_in_a_training_corpus(tmp_path: Path) -> None:
    train, held_out = set(layouts(held_out=False)), set(layouts(held_out=True))
    assert not train & held_out
    assert (len(train), len(held_out)) == (2080, 1040)
    summary = write_corpus(CorpusConfig(num_images=60, held_out=True), tmp_path / "held-out")
    assert summary.num_layouts == 60
    shown = {layout_of(line) for line in lines_of(tmp_path / "held-out")}
    assert shown <= {(each.first.name, each.relation, each.second.name) for each in held_out}


def test_a_layout_comes_again_only_when_all_have_been_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = layouts(held_out=False)[:7]
    monkeypatch.setattr("siglip2_cache.demo.corpus.layouts", lambda *, held_out: few)
    write_corpus(CorpusConfig(num_images=21), tmp_path / "few")
    shown = [layout_of(line) for line in lines_of(tmp_path / "few")]
    assert [len(set(shown[i : i + 7])) for i in (0, 7, 14)] == [7, 7, 7]
    assert shown[:7] != shown[7:14]


# --- pictures -----------------------------------------------------------------------------------


def test_no_two_pictures_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one: list[Layout] = layouts(held_out=False)[:1]
    monkeypatch.setattr("siglip2_cache.demo.corpus.layouts", lambda *, held_out: one)
    for seed, held_out in ((0, False), (1, False), (0, True)):
        config = CorpusConfig(num_images=50, seed=seed, held_out=held_out)
        write_corpus(config, tmp_path / f"{seed} {held_out}")
    files = list(tmp_path.rglob("*.png"))
    assert len(files) == 150
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in files}) == 150


def test_a_picture_shows_what_its_scene_says(clean: Path) -> None:
    for line in lines_of(clean):
        pixels = pixels_of(clean, line).astype(int)  # (32, 32, 3)
        assert pixels.shape == (32, 32, 3)
        large, relation, small = line["scene"]
        (lx, ly, l_area), (sx, sy, s_area) = (find_object(pixels, name) for name in (large, small))
        if large.split()[0] == small.split()[0]:  # one blob of both
            continue
        along, across = (sx - lx, sy - ly) if relation in ("left", "right") else (sy - ly, sx - lx)
        sign = 1 if relation in ("left", "above") else -1
        assert along * sign > 8
        assert abs(across) < along * sign
        if large.split()[1] == small.split()[1]:
            assert l_area > 1.5 * s_area


def test_flat_colours_are_noisy(clean: Path) -> None:
    for line in lines_of(clean)[:20]:
        corner = pixels_of(clean, line)[:3, :3].astype(int)  # (3, 3, 3); no object reaches it
        spread = np.ptp(corner.reshape(9, 3), axis=0)
        assert (spread >= 3).all()
        assert (spread <= 2 * NOISE).all()


def find_object(pixels: np.ndarray, name: str) -> tuple[float, float, int]:
    """Mean x and y, and the number, of the pixels of an object's colour."""
    colour = np.array(RGB[name.split()[0]])  # type: ignore[index]
    ys, xs = np.nonzero((abs(pixels - colour) <= COLOUR_JITTER + NOISE + 1).all(axis=-1))
    assert len(xs) >= 15, name
    return float(xs.mean()), float(ys.mean()), len(xs)


def test_the_same_shape_is_drawn_alike_and_another_otherwise() -> None:
    # Part of the square around it that a shape covers; of the cross 1 - 4 * 0.375^2 = 0.4375.
    whole = {shape: draw_coverage(shape) for shape in _SHAPES}
    areas = [float(whole[shape].sum() / 20**2) for shape in _SHAPES]
    assert areas == pytest.approx([np.pi / 4, 1, 0.5, 0.4375], abs=0.01)
    assert whole["triangle"][8].sum() < whole["triangle"][24].sum()  # point up
    assert whole["cross"][8, 16] == 1
    assert whole["cross"][8, 8] == 0


def draw_coverage(shape: Any) -> np.ndarray:
    from siglip2_cache.demo import drawing

    return drawing._coverage(shape, 16.0, 16.0, 10.0)  # pyright: ignore[reportPrivateUsage]


def test_a_written_png_is_read_by_pillow_as_it_was() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        image.load()
        assert (image.format, image.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(image), pixels)


# --- files --------------------------------------------------------------------------------------


def test_equal_settings_give_the_bytes_they_gave_before(tmp_path: Path) -> None:
    config = CorpusConfig(num_images=40, seed=5, **NOISY)
    write_corpus(config, tmp_path / "a")
    write_corpus(config, tmp_path / "b")
    tree = tree_of(tmp_path / "a")
    assert tree == tree_of(tmp_path / "b")
    digest = hashlib.sha256()
    for name in sorted(tree):
        digest.update(name.encode() + b"\0" + hashlib.sha256(tree[name]).digest())
    # Changes only with what is drawn or said; then every model trained on it is to be trained anew.
    assert digest.hexdigest() == "ddf34d12ec3b66409e2311398dfe7b2ff23b14981909c1b5b5bd573d0eff7878"


def test_another_seed_gives_other_scenes(clean: Path, tmp_path: Path) -> None:
    write_corpus(CorpusConfig(num_images=50, seed=4), tmp_path / "other")
    scenes = [
        [line["scene"] for line in lines_of(folder)] for folder in (clean, tmp_path / "other")
    ]
    assert scenes[0][:50] != scenes[1]


def test_a_build_takes_the_corpus_with_languages_labels_and_prompts(
    noisy: tuple[Path, CorpusSummary], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder, summary = noisy
    config = config_of(
        summary.table,
        tmp_path / "cache",
        tiny_checkpoint,
        labels=folder / "labels.json",
        templates=folder / "templates.json",
    )
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    cache = open_cache(tmp_path / "cache")
    assert cache.table("problems").collect().is_empty()
    samples = cache.samples().collect()
    assert samples["key"].to_list() == [line["key"] for line in lines_of(folder)]
    assert samples["label"].to_list() == [line["scene"][0] for line in lines_of(folder)]
    captions = cache.captions().collect()
    assert len(captions) == summary.num_captions
    assert set(captions["lang"].to_list()) == {"en", "de", "fr", "es", "zh"}
    prompts = cache.table("prompts").collect()
    assert set(prompts["label"].to_list()) == {
        f"{colour} {shape}" for colour in RGB for shape in _SHAPES
    }
    assert Counter(prompts["lang"].to_list()) == dict.fromkeys(("en", "de", "fr", "es", "zh"), 120)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images": 0}, r"corpus\.num_images must be at least 1, got 0"),
        ({"missing_rate": 1.2}, r"corpus\.missing_rate must be between 0 and 1, got 1\.2"),
        ({"mismatched_rate": -1}, r"corpus\.mismatched_rate must be between 0 and 1, got -1"),
        ({"mismatched_rate": float("nan")}, r"corpus\.mismatched_rate .* got nan"),
        ({"vague_rate": 2}, r"corpus\.vague_rate must be between 0 and 1, got 2"),
        ({"captions_per_image": 21}, r"corpus\.captions_per_image must be 1 to 20, got 21"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        CorpusConfig(**({"num_images": 1} | settings))


def test_the_command_writes_the_corpus_and_refuses_a_folder_in_use(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "siglip2_cache.demo.corpus", str(tmp_path / "out")]
    command += ["--images", "10", "--missing", "0.2", "--mismatched", "0.5", "--held-out"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)

    first = run()
    assert first.returncode == 0, first.stderr
    assert first.stdout == (
        f"wrote {tmp_path}/out/captions.jsonl: 10 images of 10 layouts, 2 without captions, "
        "4 with wrong ones; 40 captions, 40 different\n"
    )
    config = CorpusConfig(num_images=10, held_out=True, missing_rate=0.2, mismatched_rate=0.5)
    write_corpus(config, tmp_path / "same")
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "same")
    second = run()
    assert second.returncode == 1
    assert second.stderr == (f"error: {tmp_path}/out is not empty; name a new or empty folder\n")
