"""The objectives that bench_distillation compares, in the order in which they are run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from siglip2_cache.store.format.augmentation import PRESETS

NOISES: dict[str, tuple[float, float]] = {
    "30 % missing, 45 % mismatched": (0.3, 0.45),
    "60 % mismatched": (0.0, 0.6),
    "clean": (0.0, 0.0),
}
"""Share of images without captions, and of captioned images with those of another. All digits have captions:
there the first is the second."""

NOISY, MISMATCHED, CLEAN = NOISES
CACHES: dict[str, dict[str, Any]] = {
    "1 view": {},
    "4 views": {"num_views": 4},
    "4 augmented views": {"num_views": 4, "augmentation": PRESETS["strong"]},
}
"""Settings of the plan of each kind of cache."""

SCENES = ("scenes", "scratch", "half")
WORLDS = (*SCENES, "digits")
"""Scenes from the shipped student, from random weights, from one of half the width; digits."""

PRETRAINED = ("scenes", "digits")


@dataclass(frozen=True)
class Way:
    """One objective, with its settings."""

    name: str
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    lr: float = 8e-3
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    noises: tuple[str, ...] = (NOISY,)
    worlds: tuple[str, ...] = ("scenes",)
    cache: str = "1 view"
    cosine_of_scale: float = 1.0
    """Weight of the cosine term as a share of the teacher's scale, where weights has none."""

    schedule: str = "wsd"
    steps: float = 1.0
    """Steps as a share of those of the others."""

    is_online: bool = False

    def told(self) -> list[Any]:
        """Return what a result depends on."""
        return [
            dict(self.weights), self.lr, dict(self.settings), self.cache, self.steps, self.is_online,
            self.cosine_of_scale, self.schedule,
        ]  # fmt: skip


def only(**given: float) -> dict[str, float]:
    """Return weights in which a term that is not named is 0."""
    return {"soft": 0.0, "cosine": 0.0, "contrastive": 0.0, **given}


ALL = tuple(NOISES)
DEFAULT = Way("default: soft 1, cosine T, contrastive 0.1, wsd", noises=ALL, worlds=WORLDS)
TWO_TEACHERS = "two teachers, the second 0.5"
_LEARNABILITY = {"select": "learnability"}
_KEEP = {"select": "keep=0.5"}
_WEIGHED = {"positives": "weighed"}
_AVERAGE = {"ema": 0.998, "export": "ema"}
_TOGETHER = {"captions_per_image": 2, **_AVERAGE}
"""What alone is ahead of the default at the first quality of captions, and goes together."""

WAYS = [
    DEFAULT,
    Way("contrastive alone, rate 2e-3", only(contrastive=1), lr=2e-3, noises=ALL, worlds=WORLDS),
    Way("schedule cosine", schedule="cosine", noises=ALL, worlds=WORLDS),
    Way("cosine T/3", cosine_of_scale=1 / 3, noises=ALL, worlds=WORLDS),
    Way("cosine T/3, schedule cosine", cosine_of_scale=1 / 3, schedule="cosine", noises=ALL, worlds=WORLDS),
    Way("cosine 2 T", cosine_of_scale=2.0, noises=ALL, worlds=WORLDS),
    Way("cosine 4 T", cosine_of_scale=4.0, worlds=WORLDS),
    Way("clipped at 20", settings={"clip_norm": 20.0}, worlds=WORLDS),
    Way("no contrastive", {"contrastive": 0.0}, noises=ALL, worlds=WORLDS),
    Way("soft and contrastive, no cosine", {"cosine": 0.0}, noises=ALL),
    Way("positives weighed", settings=_WEIGHED, noises=ALL, worlds=WORLDS),
    Way("positives weighed, contrastive 0.037", {"contrastive": 0.037}, settings=_WEIGHED, noises=ALL),
    Way("select keep=0.5", settings=_KEEP, noises=ALL, worlds=WORLDS),
    Way("two captions an image", settings={"captions_per_image": 2}, noises=ALL, worlds=WORLDS),
    Way("average, decay 0.998", settings=_AVERAGE, noises=ALL, worlds=WORLDS),
    Way("4 views", cache="4 views", noises=ALL, worlds=WORLDS),
    Way("4 views, augment strong", cache="4 augmented views", noises=ALL, worlds=WORLDS),
    Way("relations 1", {"relations": 1.0}, noises=ALL, worlds=WORLDS),
    Way("affinity 0.1", {"affinity": 0.1}, noises=ALL, worlds=WORLDS),
    Way("image_bank 0.1", {"image_bank": 0.1}, noises=ALL, worlds=WORLDS),
    Way("drrho 1 for contrastive", {"contrastive": 0.0, "drrho": 1.0}, noises=ALL, worlds=WORLDS),
    Way("select learnability, super-batch 2", settings=_LEARNABILITY, noises=ALL, worlds=WORLDS),
    Way("two captions, averaged", settings=_TOGETHER, noises=ALL, worlds=WORLDS),
    Way("drrho alone, rate 2e-3", only(drrho=1), lr=2e-3),
    Way("drrho_sigmoid alone, rate 2e-3", only(drrho_sigmoid=1), lr=2e-3),
    Way("default, rate 4e-3", lr=4e-3, noises=ALL, worlds=WORLDS),
    Way("default, rate 16e-3", lr=16e-3, noises=ALL, worlds=WORLDS),
    Way("default, rate 1e-3", lr=1e-3, noises=ALL, worlds=PRETRAINED),
    Way("default, half the steps", noises=ALL, worlds=WORLDS, steps=0.5),
    Way("select learnability, super-batch 2, half the steps", settings=_LEARNABILITY, noises=ALL,
        worlds=WORLDS, steps=0.5),
    Way("select keep=0.5, half the steps", settings=_KEEP, noises=ALL, worlds=WORLDS, steps=0.5),
    Way("4 views, 2 in one step", settings={"views_per_step": 2}, cache="4 views", noises=ALL),
    Way("default, ten times the steps", noises=ALL, steps=10.0),
    Way(TWO_TEACHERS, settings={"teacher": {"teacher": 1.0, "second": 0.5}}, noises=ALL, worlds=SCENES),
]  # fmt: skip
