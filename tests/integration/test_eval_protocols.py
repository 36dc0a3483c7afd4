"""``siglip2-cache eval --protocol``: benchmarks in the layout of their publishers, without a cache."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.commands import error_line
from kit.fakes import SilentProgress, config_of, draw_image, write_table_corpus

from siglip2_cache import open_cache
from siglip2_cache.precompute.build import build
from siglip2_cache.siglip import load_trainable, resolve_checkpoint

Command = Callable[..., tuple[int, str, str]]
IDS = ("n01440764", "n02084071", "n03000000")
NAMES = ("tench", "dog", "an apple")
NUM_IMAGES = 12


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_image(seed, (40, 24)).save(path)


def evaluated(command: Command, *arguments: object) -> dict[str, Any]:
    status, out, err = command("eval", *arguments, "--json", "--decode-workers", 0)
    assert (status, err) == (0, "")
    return json.loads(out)


def refused(command: Command, *arguments: object) -> str:
    return error_line(*command("eval", *arguments))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """annotations/dataset_coco.json, and val2014 beside it; two of three images are of the test split."""
    root = tmp_path_factory.mktemp("coco")
    images: list[dict[str, Any]] = []
    for i in range(NUM_IMAGES):
        name = f"COCO_val2014_{i:012d}.jpg"
        draw(root / "val2014" / name, i)
        sentences = [{"raw": f"Picture {i} as seen {j}.", "tokens": []} for j in range(5)]
        split = "train" if i % 3 == 2 else "test"
        images.append(
            {
                "filepath": "val2014",
                "filename": name,
                "split": split,
                "cocoid": i,
                "sentences": sentences,
            }
        )
    (root / "annotations").mkdir()
    data = root / "annotations" / "dataset_coco.json"
    data.write_text(json.dumps({"dataset": "coco", "images": images}))
    return data


@pytest.fixture(scope="module")
def xm3600(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """captions.jsonl, and images/KEY.jpg, in three languages; the second has one caption an image."""
    root = tmp_path_factory.mktemp("xm3600")
    lines: list[dict[str, Any]] = []
    for i in range(NUM_IMAGES):
        draw(root / "images" / f"{i:016x}.jpg", i)
        captions = {"en": [f"A {i}", f"One {i}"], "mi": [f"He {i}"], "zh": [f"图 {i}", f"像 {i}"]}
        lines.append(
            {"image/key": f"{i:016x}", "image/locale": "en"}
            | {lang: {"caption": texts} for lang, texts in captions.items()}
        )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (root / "captions.jsonl").write_text(text, "utf-8")
    return root


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """val/WORDNET_ID/IMAGE, and names.txt."""
    root = tmp_path_factory.mktemp("imagenet")
    for i in range(NUM_IMAGES):
        draw(root / "val" / IDS[i % 3] / f"ILSVRC2012_val_{i:08d}.JPEG", i)
    (root / "names.txt").write_text("\n".join(NAMES) + "\n")
    return root


def test_a_split_of_coco_has_retrieval_with_intervals(
    command: Command, coco: Path, tiny_checkpoint: Path
) -> None:
    arguments = (tiny_checkpoint, coco, "--protocol", "coco", "--images", coco.parents[1])
    found = evaluated(command, *arguments)
    gallery, model = found["gallery"], found["columns"]["model"]
    assert gallery["split"] == "test"
    assert (gallery["images"], gallery["captioned_images"], gallery["captions"]) == (8, 8, 40)
    assert (model["missing_images"], gallery["problems"]) == (0, 0)
    for way in ("image_to_text", "text_to_image"):
        low, high = model["intervals"]["retrieval"]["all"][way]["5"]
        assert 0 <= low <= model["retrieval"]["all"][way]["5"] <= high <= 1
    assert model["zero_shot"] is model["image_cosine"] is model["soft_loss_excess"] is None
    assert model["calibration"]["prior"] == pytest.approx(1 / 8)
    other = evaluated(command, *arguments, "--split", "train")
    assert other["gallery"]["images"] == 4
    status, out, err = command("eval", *arguments, "--samples", 3)
    assert (status, err) == (0, "")
    head, table = out.split("\n\n")
    assert f"protocol   coco: {coco}, split test" in head
    assert "images     3; the benchmark has 5,000" in head
    assert "texts      15 different captions; 0 prompts" in head
    assert "image to text, R@1" in table
    assert "[ ]  95 % of 1,000 resamples of the images" in table
    assert "zero-shot" not in out


def test_xm3600_has_retrieval_in_every_language(
    command: Command, xm3600: Path, tiny_checkpoint: Path
) -> None:
    found = evaluated(command, tiny_checkpoint, xm3600, "--protocol", "xm3600")
    model = found["columns"]["model"]
    languages = model["retrieval"]["languages"]
    assert {lang: (each["images"], each["texts"]) for lang, each in languages.items()} == {
        "en": (NUM_IMAGES, 2 * NUM_IMAGES),
        "mi": (NUM_IMAGES, NUM_IMAGES),
        "zh": (NUM_IMAGES, 2 * NUM_IMAGES),
    }
    mean = sum(each["text_to_image"]["1"] for each in languages.values()) / 3
    assert model["retrieval"]["macro_mean"]["text_to_image"]["1"] == pytest.approx(mean)
    assert model["intervals"]["retrieval"]["macro_mean"]["text_to_image"]["1"]


def test_imagenet_is_classified_by_names_in_the_order_of_the_ids(
    command: Command, imagenet: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    names = imagenet / "names.txt"
    arguments = (tiny_checkpoint, imagenet / "val", "--protocol", "imagenet")
    found = evaluated(command, *arguments, "--labels", names)
    shot = found["columns"]["model"]["zero_shot"]["all"]
    assert (shot["images"], shot["classes"], found["gallery"]["prompts"]) == (NUM_IMAGES, 3, 240)
    assert found["columns"]["model"]["retrieval"] is None
    low, high = found["columns"]["model"]["intervals"]["zero_shot"]["all"]["accuracy"]["1"]
    assert low <= shot["accuracy"]["1"] <= high
    # As the cache of a corpus with the same prompts has it.
    templates = tmp_path / "templates.txt"
    templates.write_text("a photo of {}.\n")
    root = tmp_path / "cache"
    table = tmp_path / "names.csv"
    table.write_text(
        "label,name\n" + "".join(f"{a},{b}\n" for a, b in zip(IDS, NAMES, strict=True))
    )
    prompts = {"labels": table, "templates": templates}
    build(config_of(imagenet / "val", root, tiny_checkpoint, **prompts), progress=SilentProgress())
    of_cache = evaluated(command, tiny_checkpoint, root, "--split", "all")["columns"]["model"]
    same = evaluated(command, *arguments, "--labels", names, "--templates", templates)
    assert same["columns"]["model"]["zero_shot"] == of_cache["zero_shot"]
    assert same["columns"]["model"]["intervals"]["zero_shot"] == of_cache["intervals"]["zero_shot"]
    # A choice of images has all classes, as candidates and for the list of names.
    few = evaluated(command, *arguments, "--labels", names, "--samples", 2)
    shot = few["columns"]["model"]["zero_shot"]["all"]
    assert (shot["images"], shot["classes"], few["gallery"]["prompts"]) == (2, 3, 240)
    message = refused(command, *arguments)
    assert "the labels are WordNet ids, such as n01440764; give the names" in message


def test_any_corpus_has_the_numbers_of_its_cache(
    command: Command, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lines = [
        {
            "image": f"{i}.png",
            "captions": [{"caption": f"Picture {i // 2}", "lang": "en"}, {"caption": f"Bild {i}"}],
        }
        for i in range(NUM_IMAGES)
    ]
    table = write_table_corpus(tmp_path / "corpus", lines)
    corpus = tmp_path / "corpus"
    shutil.copy(corpus / "0.png", corpus / "7.png")  # of other captions: no error of either
    build(config_of(table, tmp_path / "cache", tiny_checkpoint), progress=SilentProgress())
    assert open_cache(tmp_path / "cache").num_samples == NUM_IMAGES
    expected = evaluated(command, tiny_checkpoint, tmp_path / "cache", "--split", "all")
    found = evaluated(command, tiny_checkpoint, table, "--protocol", "corpus")
    for name in ("retrieval", "calibration_error", "calibration", "missing_images"):
        assert found["columns"]["model"][name] == expected["columns"]["model"][name], name


def test_a_choice_without_labels_or_captions_is_refused_before_anything_is_embedded(
    command: Command, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lines = [{"image": f"{i}.png"} | ({"label": "cat"} if i == 11 else {}) for i in range(12)]
    table = write_table_corpus(tmp_path / "corpus", lines)
    arguments = (tiny_checkpoint, table, "--protocol", "corpus")
    assert evaluated(command, *arguments)["gallery"]["prompts"] == 80
    message = refused(command, *arguments, "--samples", 1)
    assert message == f"no image of {table} has a caption or a label"


def test_images_that_cannot_be_read_are_counted_and_named(
    command: Command, coco: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for path in sorted((coco.parents[1] / "val2014").iterdir())[1:]:
        (tmp_path / "val2014").mkdir(exist_ok=True)
        (tmp_path / "val2014" / path.name).symlink_to(path)
    arguments = (tiny_checkpoint, coco, "--protocol", "coco", "--images")
    status, out, err = command("eval", *arguments, tmp_path, "--decode-workers", 0)
    assert (status, err) == (0, "")
    name = "val2014/COCO_val2014_000000000000.jpg"
    assert f"missing    1 image, counted as misses (first: '{name}', no such file)" in out
    message = refused(command, *arguments, tmp_path / "nowhere")
    assert message.startswith("none of 8 images can be used (row 0: no such file")
    assert message.endswith("; name the folder of the images with --images")


def test_what_does_not_go_together_is_refused_in_one_line(
    command: Command, coco: Path, xm3600: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for arguments, message in (
        ((coco, "--protocol", "cocoa"), "protocol must be one of coco, corpus, flickr30k, "),
        ((coco, "--protocol", "coco", "--val-share", 0.5), "--val-share goes with a cache, not "),
        ((coco, "--labels", "f"), "--labels goes with --protocol; leave it out"),
        ((coco, "--protocol", "coco", "--labels", "f"), "protocol coco has no classes; leave out"),
        ((coco, "--protocol", "coco", "--split", "all"), "has no image of split 'all'; it has te"),
        ((xm3600, "--protocol", "coco"), f"there is no file {xm3600}; expected dataset_coco.json"),
        ((tmp_path, "--protocol", "xm3600"), "captions.jsonl; expected the folder of captions.zip"),
        ((xm3600, "--protocol", "xm3600", "--split", "test"), "protocol xm3600 has no splits"),
        ((xm3600, "--protocol", "corpus", "--images", "x"), "images has no meaning for protocol "),
        ((coco, "--protocol", "coco", "--samples", 0), "samples must be at least 1, got 0"),
        ((tmp_path, "--protocol", "corpus"), "holds no images"),
    ):
        assert message in refused(command, tiny_checkpoint, *arguments)
    draw(tmp_path / "bare" / "a.png", 0)
    assert "no image of " in refused(
        command, tiny_checkpoint, tmp_path / "bare", "--protocol", "corpus"
    )
    assert "has no folders of classes" in refused(
        command, tiny_checkpoint, tmp_path / "bare", "--protocol", "imagenet"
    )


def test_an_image_tower_alone_is_refused(
    command: Command, coco: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tower = load_trainable(resolve_checkpoint(str(tiny_checkpoint)), towers="image", is_new=False)
    tower.save_pretrained(tmp_path)
    settings = (tiny_checkpoint / "preprocessor_config.json").read_text()
    (tmp_path / "preprocessor_config.json").write_text(settings)
    message = refused(command, tmp_path, coco, "--protocol", "coco")
    assert "is an image tower alone" in message
