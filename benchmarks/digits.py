"""A second corpus for bench_distillation: two handwritten digits side by side, and labels as captions.

The 1,797 digits that scikit-learn bundles (UCI, Alpaydin and Kaynak 1998) are scans of handwriting, of 8 x 8
pixels. A picture shows two of them, with paper and ink of random colours; its captions are its label in
words. Digits of held-out pictures are in no training picture. There are 100 classes.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siglip2_cache.demo.architecture import IMAGE_PROCESSOR, Size, write_architecture

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = ("{} {}", "{} and then {}", "first {} then {}", "the digits {} {}")
SIDE, DIGIT = 32, 16


def write_digits(
    folder: Path, *, num_images: int, seed: int, held_out: bool, mismatched: float
) -> Path:
    """Write pictures, captions.jsonl, labels.json and templates.json; return the folder.

    Args:
        folder: new folder.
        num_images: pictures.
        seed: random seed.
        held_out: use the last fifth of the digits, else the others.
        mismatched: share of pictures whose captions are another's label.
    """
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    pixels_D, labels_D = found.images / 16, found.target
    first_held_out = len(labels_D) * 4 // 5
    own = np.arange(len(labels_D)) >= first_held_out
    pixels_D, labels_D = pixels_D[own == held_out], labels_D[own == held_out]
    draw = np.random.default_rng([seed, held_out])
    (folder / "images").mkdir(parents=True)
    lines: list[str] = []
    for i in range(num_images):
        pair = draw.integers(0, len(labels_D), 2)
        Image.fromarray(_picture(pixels_D[pair], draw)).save(folder / f"images/{i:06d}.png")
        label = tuple(int(each) for each in labels_D[pair])
        told = label
        if draw.random() < mismatched:
            while told == label:
                told = tuple(int(each) for each in draw.integers(0, 10, 2))
        lines.append(
            json.dumps(
                {
                    "image": f"images/{i:06d}.png",
                    "key": f"{i:06d}",
                    "captions": [{"text": each, "lang": "en"} for each in texts_of(told)],
                    "label": name_of(label),
                }
            )
        )
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    classes = [(left, right) for left in range(10) for right in range(10)]
    labels = {name_of(each): {"en": name_of(each)} for each in classes}
    (folder / "labels.json").write_text(json.dumps(labels))
    templates = {"en": ["{}", "the digits {}"]}
    (folder / "templates.json").write_text(json.dumps(templates))
    return folder


def name_of(label: tuple[int, ...]) -> str:
    return " ".join(WORDS[each] for each in label)


def texts_of(label: tuple[int, ...]) -> list[str]:
    return [template.format(*(WORDS[each] for each in label)) for template in CAPTIONS]


def _picture(pixels_288: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.uint8]:
    """Return (32, 32, 3) uint8: two digits, each moved a little, on paper with noise."""
    ink_HW = np.zeros((SIDE, SIDE))
    for i, pixels_88 in enumerate(pixels_288):
        top = int(draw.integers(0, SIDE - DIGIT + 1))
        ink_HW[top : top + DIGIT, i * DIGIT : (i + 1) * DIGIT] = np.kron(pixels_88, np.ones((2, 2)))
    paper, ink = draw.uniform(0.55, 1, 3), draw.uniform(0, 0.45, 3)
    rgb_HWC = paper + ink_HW[..., None] * (ink - paper) + draw.normal(0, 0.04, (SIDE, SIDE, 3))
    return (rgb_HWC.clip(0, 1) * 255).round().astype(np.uint8)


def write_digit_architecture(size: Size, folder: Path) -> Path:
    """Write a checkpoint of the demo's size without weights, whose vocabulary is this corpus's words."""
    if folder.exists():
        shutil.rmtree(folder)
    write_architecture(size, folder)
    words = sorted({word for each in texts_of((0, 0)) for word in each.split()} | set(WORDS))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = [each["content"] for each in tokenizer["added_tokens"]]
    tokenizer["model"]["vocab"] = {word: i for i, word in enumerate([*special, *words])}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = len(special) + len(words)
    (folder / "config.json").write_text(json.dumps(config))
    assert IMAGE_PROCESSOR["do_convert_rgb"] is None
    return folder
