"""Write the generated corpus of tests, experiments and the demo.

    python -m siglip2_cache.demo.corpus OUT --images 8000 --seed 1 --missing 0.3 --mismatched 0.45
    python -m siglip2_cache.demo.corpus HELD_OUT --images 1000 --seed 2 --held-out --vague 0

The folder is a source for a build::

    OUT/captions.jsonl    image, key, captions, label, scene
    OUT/images/000000.png
    OUT/labels.json       for --labels: the 40 classes, named in every language
    OUT/templates.json    for --templates

The label is colour and shape of the *large* object. Equal settings give equal bytes on every machine.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ..errors import CacheError, SettingError
from .captions import Caption, class_names, class_templates, draw_captions
from .drawing import draw_scene, encode_png
from .random_draws import pick, shuffled
from .scenes import THINGS, Layout, Scene, layouts

_MOST_CAPTIONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusConfig:
    """Settings of one generated corpus."""

    num_images: int
    """Number of pictures. Layouts come in random order and repeat only after all have been used."""

    seed: int = 0
    """Random seed."""

    held_out: bool = False
    """Use the held-out layouts (one in three), which no training corpus shows."""

    missing_rate: float = 0.0
    """Share of images without a caption, in [0, 1]."""

    mismatched_rate: float = 0.0
    """Share of images with captions whose captions are all of another layout, in [0, 1]."""

    vague_rate: float = 0.4
    """Probability that a caption is vague: true, but of other layouts too. With 0 every caption fits only
    one layout, so that retrieval among held-out images can reach 1."""

    captions_per_image: int = 5
    """Captions of each image, 1 to 20; five captions are in five languages."""

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise SettingError(f"corpus.num_images must be at least 1, got {self.num_images}")
        if not 1 <= self.captions_per_image <= _MOST_CAPTIONS:
            raise SettingError(
                f"corpus.captions_per_image must be 1 to {_MOST_CAPTIONS}, "
                f"got {self.captions_per_image}"
            )
        for name in ("missing_rate", "mismatched_rate", "vague_rate"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SettingError(f"corpus.{name} must be between 0 and 1, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSummary:
    """What was written."""

    table: Path
    """captions.jsonl, a source for a build."""

    num_images: int
    num_missing: int
    """Number of images without a caption."""

    num_mismatched: int
    """Number of images with captions of another layout."""

    num_captions: int
    num_texts: int
    """Number of different captions."""

    num_layouts: int
    """Number of different layouts."""


@dataclass(frozen=True, slots=True)
class _Sample:
    layout: Layout
    scene: Scene
    captions: list[Caption]


def write_corpus(config: CorpusConfig, folder: str | Path) -> CorpusSummary:
    """Write the corpus into a new or empty folder; return its counts.

    The rates change only captions: with other rates the pictures are the same, and so are captions that are
    neither missing nor mismatched.

    Raises:
        SettingError: the folder is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder} is not empty; name a new or empty folder")
    (folder / "images").mkdir(parents=True)
    missing, mismatched = _faults(config)
    lines: list[str] = []
    texts: dict[str, int] = {}
    shown: set[Layout] = set()
    for i, sample in enumerate(_samples(config, missing, mismatched)):
        image = f"images/{i:06d}.png"
        pixels = draw_scene(sample.scene, _rng(config, f"pixels {i}"))
        (folder / image).write_bytes(encode_png(pixels))
        lines.append(json.dumps(_line(image, i, config, sample), ensure_ascii=False) + "\n")
        shown.add(sample.layout)
        for caption in sample.captions:
            texts[caption.text] = texts.get(caption.text, 0) + 1
    _write_json(folder / "labels.json", {thing.name: class_names(thing) for thing in THINGS})
    _write_json(folder / "templates.json", class_templates())
    _write(folder / "captions.jsonl", "".join(lines))
    return CorpusSummary(
        table=folder / "captions.jsonl",
        num_images=config.num_images,
        num_missing=len(missing),
        num_mismatched=len(mismatched),
        num_captions=sum(texts.values()),
        num_texts=len(texts),
        num_layouts=len(shown),
    )


def _rng(config: CorpusConfig, what: str) -> Random:
    return Random(f"{'held-out' if config.held_out else 'train'} {config.seed} {what}")


def _faults(config: CorpusConfig) -> tuple[set[int], set[int]]:
    """Return the numbers of images with missing and with mismatched captions, exactly at the rates."""
    order = shuffled(range(config.num_images), _rng(config, "faults"))
    num_missing = round(config.num_images * config.missing_rate)
    num_mismatched = round((config.num_images - num_missing) * config.mismatched_rate)
    return set(order[:num_missing]), set(order[num_missing : num_missing + num_mismatched])


def _samples(config: CorpusConfig, missing: set[int], mismatched: set[int]) -> Iterator[_Sample]:
    choice = layouts(held_out=config.held_out)
    order: list[Layout] = []
    for i in range(config.num_images):
        if i % len(choice) == 0:
            order = shuffled(choice, _rng(config, f"layouts {i}"))
        layout = order[i % len(choice)]
        rng = _rng(config, f"sample {i}")
        scene = layout.scene(is_first_large=rng.random() < 0.5)
        captions = _captions(scene, config, rng)
        if i in mismatched:
            captions = _captions_of_another(layout, choice, config, i)
        yield _Sample(layout, scene, [] if i in missing else captions)


def _captions_of_another(
    layout: Layout, choice: list[Layout], config: CorpusConfig, i: int
) -> list[Caption]:
    rng = _rng(config, f"mismatch {i}")
    other = layout
    while other == layout:
        other = pick(choice, rng)
    scene = other.scene(is_first_large=rng.random() < 0.5)
    return _captions(scene, config, rng)


def _captions(scene: Scene, config: CorpusConfig, rng: Random) -> list[Caption]:
    return draw_captions(scene, config.captions_per_image, rng, vague_rate=config.vague_rate)


def _line(image: str, i: int, config: CorpusConfig, sample: _Sample) -> dict[str, Any]:
    scene = sample.scene
    return {
        "image": image,
        "key": f"{'held-out' if config.held_out else 'train'}-{config.seed}-{i:06d}",
        "captions": [{"text": each.text, "lang": each.lang} for each in sample.captions],
        "label": scene.large.name,
        "scene": [scene.large.name, scene.relation, scene.small.name],  # ignored by a build
    }


def _write_json(path: Path, value: Any) -> None:
    _write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())  # not write_text, whose line ends depend on the machine


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, of this process or as given; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m siglip2_cache.demo.corpus",
        description="Write a generated corpus of 32 px scenes with captions in five languages.",
    )
    parser.add_argument("out", type=Path, help="new or empty folder")
    parser.add_argument("--images", type=int, required=True, help="number of pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--missing", type=float, default=0.0, help="share of images without a caption"
    )
    parser.add_argument(
        *("--mismatched",), type=float, default=0.0, help="share of the others with wrong captions"
    )
    parser.add_argument("--vague", type=float, default=0.4, help="share of vague captions")
    parser.add_argument("--captions", type=int, default=5, help="captions of each image")
    parser.add_argument(
        "--held-out", action="store_true", help="use layouts that training never shows"
    )
    given = parser.parse_args(arguments)
    try:
        config = CorpusConfig(
            num_images=given.images,
            seed=given.seed,
            held_out=given.held_out,
            missing_rate=given.missing,
            mismatched_rate=given.mismatched,
            vague_rate=given.vague,
            captions_per_image=given.captions,
        )
        summary = write_corpus(config, given.out)
    except CacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"wrote {summary.table}: {summary.num_images:,} images of {summary.num_layouts:,} layouts, "
        f"{summary.num_missing:,} without captions, {summary.num_mismatched:,} with wrong ones; "
        f"{summary.num_captions:,} captions, {summary.num_texts:,} different"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
