"""Settings of one training, and which of them go together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ..errors import SettingError
from ..formatting import nearest_name
from ..siglip import Towers
from ..store.io.location import Location

Projection = Literal["auto", "learned", "pca", "none"]
CheckPixels = Literal["always", "first-epoch", "never"]
BankLabels = Literal["soft", "hard"]
Term = Literal["soft", "cosine", "contrastive", "bank"]

TERMS: tuple[Term, ...] = get_args(Term)
TRAIN_DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of one training. docs/objectives.md has the reason of each default."""

    cache: Location
    """Folder of the cache."""

    student: str
    """Hub id or folder of a SigLIP or SigLIP 2 checkpoint."""

    out: Path
    """Folder of the run: settings, metrics, checkpoints, the finished model."""

    teacher: str | None = None
    """Name of the teacher in the cache; None where it has one."""

    cache_dir: Path | None = None
    """Where copies of a remote cache's files lie; None: the default folder (store/io/download_cache.py)."""

    cache_limit: str | None = None
    """Bytes of those copies at most, such as 500GB; None: four fifths of the disk."""

    corpus_roots: Mapping[str, str] = field(default_factory=dict[str, str])
    """Old folder to new folder, where the corpus has moved since it was planned."""

    revision: str | None = None
    """Revision of a hub id."""

    from_scratch: bool = False
    """Begin from random weights; of the checkpoint only settings and tokenizer are read."""

    towers: Towers = "both"
    """``image``: only the image tower, against cached teacher texts."""

    teacher_text: str | None = None
    """With towers image: the teacher's checkpoint, whose text tower then goes into the result."""

    projection: Projection = "auto"
    """What lies between widths: ``learned``, one shared map from student to teacher; ``pca``, a fixed
    one from teacher to student; ``none``, equal widths or only the soft term. ``auto``: learned, or
    with towers image none where widths are equal and else pca."""

    weights: Mapping[Term, float] = field(default_factory=dict[Term, float])
    """Weight of each term; those left out: soft 1, cosine a third of the teacher's temperature,
    contrastive 0.1, bank 0."""

    teacher_scale: float | None = None
    """Multiplies the teacher's cosines, exponential applied; None: the teacher's own."""

    teacher_bias: float | None = None
    """None: the teacher's own."""

    bank_size: int = 4096
    """Cached teacher texts drawn for each step of the bank term, beside those of the batch."""

    bank_labels: BankLabels = "soft"
    """``soft``: the teacher's probabilities. ``hard``: an image's own captions."""

    bank_threshold: float = 0.95
    """With hard labels: texts whose cosine to an own caption, by the teacher, is above are ignored."""

    steps: int | None = None
    """Optimizer steps. None: as many as ``epochs`` take."""

    epochs: float | None = None
    """Passes over the training images. None: as ``steps`` says; where neither is given, 1."""

    global_batch_size: int = 256
    """Images of one step, over all processes, views included."""

    micro_batch_size: int | None = None
    """Images, and texts, of one forward pass of one process; the gradient is that of the whole batch
    all the same. None: the whole share of the process."""

    views_per_step: int = 1
    """Views of each sample in one step."""

    max_num_patches: int | None = None
    """Patches of an image at most, NaFlex students only. None: as its processor."""

    lr: float | None = None
    """Peak learning rate of the student. None: 1e-5, from scratch 1e-3."""

    projection_lr: float = 1e-3
    """Peak learning rate of the learned map."""

    weight_decay: float | None = None
    """Of the student's matrices. None: 0, from scratch 1e-4."""

    warmup_steps: int | None = None
    """None: 200 or 5 % of the steps, whichever is more, at most half of them. At most all of them."""

    clip_norm: float = 1.0
    """Largest norm of the gradient."""

    seed: int = 0
    """Of the order of images, the choice of captions, views and bank texts, and new weights."""

    device: str = "auto"
    """auto (cuda, mps, cpu), or a device such as cuda:1."""

    dtype: str = "auto"
    """Of the forward passes: float32, or bfloat16 by autocast. auto: bfloat16 on cuda."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""

    compile: bool = False
    """Compile the towers with torch.compile."""

    check_pixels: CheckPixels = "first-epoch"
    """When an image's bytes are compared with those the teacher saw."""

    decode_workers: int | None = None
    """Decoding processes; 0: none. None: one a core, at most 16, shared by the processes of a machine."""

    sample_timeout: float = 60.0
    """Seconds after which an image that hangs is left out."""

    val_share: float | None = None
    """Share of different pictures held out for evaluation. None: 0.05, or as val_keys says."""

    val_keys: str | None = None
    """Pattern of keys held out instead, such as ``validation/*``."""

    eval_samples: int = 10_000
    """Held-out images at most that the student is evaluated on before and after; 0: no evaluation."""

    save_every: int | None = None
    """Steps between checkpoints. None: a twentieth of all steps, at least 10, at most 1000."""

    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""

    allow_partial: bool = False
    """Train on what is committed of a cache that is not finished."""

    tensorboard: bool = False
    """Write RUN/tensorboard, too (extra tensorboard)."""

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= lowest):
                raise SettingError(f"{name} must be at least {lowest}, got {value}")
        for name in _ABOVE_0:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingError(f"{name} must be above 0, got {value}")
        if self.teacher_bias is not None and not math.isfinite(self.teacher_bias):
            raise SettingError(f"teacher_bias must be a finite number, got {self.teacher_bias}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingError(
                    f"{name} {getattr(self, name)!r} is not one of {', '.join(choices)}"
                )
        for term, weight in self.weights.items():
            if term not in TERMS:
                raise SettingError(f"weights has no term {term!r}{nearest_name(term, TERMS)}")
            if not (math.isfinite(weight) and weight >= 0):
                raise SettingError(f"weights.{term} must be at least 0, got {weight}")
        if self.steps is not None and self.epochs is not None:
            raise SettingError(
                f"steps {self.steps} and epochs {self.epochs:g} both say how long: give one"
            )
        if self.val_share is not None and self.val_keys is not None:
            raise SettingError(
                f"val_share {self.val_share:g} and val_keys {self.val_keys!r} both say what is held out: "
                "give one"
            )
        if self.teacher_text is not None and self.towers != "image":
            raise SettingError("teacher_text goes with towers image: else the student has its own")
        if self.towers == "image" and self.projection == "learned":
            raise SettingError(_WHY_NO_LEARNED_MAP)


_WHY_NO_LEARNED_MAP = (
    "projection learned goes with towers both: an image tower alone must come out in the space of the "
    "teacher's texts; take pca, or none where widths are equal"
)
_LOWEST: dict[str, float] = {
    "steps": 1,
    "global_batch_size": 1,
    "micro_batch_size": 1,
    "views_per_step": 1,
    "max_num_patches": 1,
    "bank_size": 0,
    "bank_threshold": -1,
    "weight_decay": 0,
    "warmup_steps": 0,
    "seed": 0,
    "decode_workers": 0,
    "eval_samples": 0,
    "save_every": 1,
    "keep_checkpoints": 1,
}
_ABOVE_0 = ("lr", "projection_lr", "clip_norm", "epochs", "sample_timeout", "teacher_scale")
_CHOICES: dict[str, tuple[str, ...]] = {
    "towers": get_args(Towers),
    "projection": get_args(Projection),
    "bank_labels": get_args(BankLabels),
    "check_pixels": get_args(CheckPixels),
    "dtype": TRAIN_DTYPES,
}
