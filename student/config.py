"""Settings of one training: their help, their bounds, and which go together."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from .config_checks import check_config
from .selection import parse_selection
from .setting import Setting
from .terms import loss_terms

if TYPE_CHECKING:
    from ..store.io.location import Location
else:
    Location = Path  # fsspec takes long to import, and the command line's help reads this file

Projection = Literal["auto", "learned", "pca", "none"]
CheckPixels = Literal["always", "first-epoch", "never"]
Pixels = Literal["auto", "corpus", "kept"]
BankLabels = Literal["soft", "hard"]
ScheduleKind = Literal["cosine", "wsd"]
ExportChoice = Literal["last", "best", "ema"]
BestMetric = Literal[
    "mean_r1",
    "image_to_text_r1",
    "text_to_image_r1",
    "zero_shot_top1",
    "image_cosine",
    "text_cosine",
    "image_correlation",
    "soft_loss_excess",
]

TEACHER = "Teacher"
STUDENT = "Student"
LOSS = "Loss"
OPTIMIZER = "Optimizer"
CORPUS = "Corpus"
HELD_OUT = "Held-out images"
HARDWARE = "Hardware"
FILES = "Files"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of one training. docs/reference/objectives.md gives the reason of each default."""

    cache: Annotated[Location, Setting("Folder or URL of the cache (the one with cache.json).")]

    student: Annotated[
        str,
        Setting(
            "Hub id or folder of a SigLIP or SigLIP 2 checkpoint to start from.",
            metavar="CHECKPOINT",
        ),
    ]
    out: Annotated[
        Path,
        Setting(
            "Folder of the run: settings, metrics, checkpoints, finished model.", metavar="RUN"
        ),
    ]
    epochs: Annotated[
        float | None,
        Setting("Passes over the training images.", default="1, unless --steps is given", above=0),
    ] = None
    steps: Annotated[int | None, Setting("Optimizer steps, instead of --epochs.", least=1)] = None
    global_batch_size: Annotated[
        int, Setting("Images in one step, over all processes, views included.", least=1)
    ] = 256
    lr: Annotated[
        float | None,
        Setting(
            "Peak learning rate of the student.",
            metavar="RATE",
            default="1e-5; with --from-scratch 1e-3",
            above=0,
        ),
    ] = None

    teacher: Annotated[
        str | Mapping[str, float] | None,
        Setting(
            "Teacher in the cache; required if it has several. Repeatable: the student learns from all of "
            "them, each with the weight after =, or 1. Images and evaluation are those of the first.",
            TEACHER,
            metavar="NAME[=WEIGHT]",
        ),
    ] = None
    teacher_scale: Annotated[
        float | None,
        Setting(
            "Factor of the teacher's cosines, exp(logit_scale).",
            TEACHER,
            default="the teacher's",
            above=0,
        ),
    ] = None
    teacher_bias: Annotated[
        float | None, Setting("Logit bias of the teacher.", TEACHER, default="the teacher's")
    ] = None
    teacher_text: Annotated[
        str | None,
        Setting(
            "With --towers image: the teacher's checkpoint, whose text tower completes the result.",
            TEACHER,
            metavar="CHECKPOINT",
        ),
    ] = None
    image_tower: Annotated[
        str | None,
        Setting(
            "With --towers text: a checkpoint whose image tower completes the result: the teacher's, or the "
            "model of a training of --towers image by the same teacher.",
            TEACHER,
            metavar="CHECKPOINT",
        ),
    ] = None

    revision: Annotated[
        str | None,
        Setting("Revision of the student's hub id.", STUDENT, metavar="NAME", default="main"),
    ] = None
    from_scratch: Annotated[
        bool, Setting("Start from random weights; read only settings and tokenizer.", STUDENT)
    ] = False
    init_from: Annotated[
        str | None,
        Setting(
            "Begin with the weights of another run: RUN (its last checkpoint), RUN/STEP, RUN/best or "
            "RUN/ema. --student says which checkpoint that run started from.",
            STUDENT,
            metavar="RUN[/STEP]",
        ),
    ] = None
    towers: Annotated[
        Literal["both", "image", "text"],
        Setting(
            "Towers to train. image: the image tower alone, against cached teacher texts. text: the text "
            "tower alone, against cached teacher images; it reads no pixels.",
            STUDENT,
        ),
    ] = "both"
    projection: Annotated[
        Projection,
        Setting(
            "Map between the widths. learned: one shared linear map, student to teacher. pca: a fixed "
            "map, teacher to student. none: equal widths, or only the soft term. auto: learned; with one "
            "tower none where widths are equal, else pca for image, and learned for text.",
            STUDENT,
            metavar="KIND",
        ),
    ] = "auto"
    max_num_patches: Annotated[
        int | None,
        Setting(
            "Most patches of an image; NaFlex students only.",
            STUDENT,
            default="as the student's processor",
            least=1,
        ),
    ] = None

    weights: Annotated[
        Mapping[str, float],
        Setting(
            "Weight of a loss term: "
            + ", ".join(f"{name} ({term.default_words})" for name, term in loss_terms().items())
            + ". Repeatable.",
            LOSS,
            metavar="TERM=WEIGHT",
            flag="--weight",
        ),
    ] = field(default_factory=dict[str, float])
    positives: Annotated[
        str,
        Setting(
            "How much a drawn caption counts in the contrastive term and a bank of hard labels. all: 1. "
            "weighed: the teacher's probability that it matches. above=P: 1 if that is above P, else 0.",
            LOSS,
            metavar="all|weighed|above=P",
        ),
    ] = "all"
    ignore_similar: Annotated[
        float | None,
        Setting(
            "In the contrastive term and a bank of hard labels, ignore texts whose teacher cosine to an "
            "image's own caption is higher, and the captions of images whose teacher cosine to the image is "
            "higher.",
            LOSS,
            metavar="COSINE",
            default="none",
            least=-1,
            below=1,
        ),
    ] = None
    affinity_scale: Annotated[
        float,
        Setting(
            "Factor of the cosines in the softmaxes of the affinity term.",
            LOSS,
            metavar="SCALE",
            above=0,
        ),
    ] = 40.0
    relations_scale: Annotated[
        float, Setting("The same of the relations term.", LOSS, metavar="SCALE", above=0)
    ] = 20.0
    drrho_scale: Annotated[
        float,
        Setting(
            "Factor of the cosines of student and teacher in the terms drrho and drrho_sigmoid.",
            LOSS,
            metavar="SCALE",
            above=0,
        ),
    ] = 100.0
    bank_size: Annotated[
        int,
        Setting(
            "Cached teacher texts, or images, drawn in each step for the terms bank and image_bank.",
            LOSS,
            least=0,
        ),
    ] = 4096
    bank_labels: Annotated[
        BankLabels,
        Setting("soft: the teacher's probabilities. hard: an image's own captions.", LOSS),
    ] = "soft"
    bank_threshold: Annotated[
        float,
        Setting(
            "With hard labels: ignore texts whose teacher cosine to an own caption is higher.",
            LOSS,
            metavar="COSINE",
            least=-1,
        ),
    ] = 0.95

    select: Annotated[
        str,
        Setting(
            "Images to train on. all: every one. keep=SHARE: this share of the captioned ones, those whose "
            "captions fit best by the teacher. keys=FILE: those of a list, one key a line. learnability: in "
            "each step those of a larger batch that are hard for the student and easy for the teacher.",
            CORPUS,
            metavar="all|keep=SHARE|keys=FILE|learnability",
        ),
    ] = "all"
    super_batch: Annotated[
        int,
        Setting(
            "With --select learnability: images that are read for each one that is trained on.",
            CORPUS,
            metavar="N",
            least=2,
        ),
    ] = 2
    caption_weights: Annotated[
        Mapping[str, float],
        Setting(
            "Weight of captions of a kind, or in a language, where captions are drawn, such as "
            "kind:synthetic=0.5 or language:de=2; none names those without. 0: never drawn. Repeatable.",
            CORPUS,
            metavar="kind:NAME|language:NAME=WEIGHT",
            flag="--caption-weight",
        ),
    ] = field(default_factory=dict[str, float])
    captions_per_image: Annotated[
        int,
        Setting(
            "Different captions of each image in one step, where it has so many.",
            OPTIMIZER,
            least=1,
        ),
    ] = 1
    views_per_step: Annotated[
        int, Setting("Views of each image in one step.", OPTIMIZER, least=1)
    ] = 1
    image_lr: Annotated[
        float | None,
        Setting("Peak learning rate of the image tower.", OPTIMIZER, default="--lr", above=0),
    ] = None
    text_lr: Annotated[
        float | None,
        Setting("Peak learning rate of the text tower.", OPTIMIZER, default="--lr", above=0),
    ] = None
    layer_decay: Annotated[
        float | None,
        Setting(
            "Factor of the learning rate for each layer further from a tower's output.",
            OPTIMIZER,
            default="none",
            above=0,
            below=1,
        ),
    ] = None
    freeze_image: Annotated[
        int | None,
        Setting(
            "Freeze the embeddings and the first LAYERS layers of the image tower; as many as it has: all "
            "of it.",
            OPTIMIZER,
            metavar="LAYERS",
            default="none",
            least=0,
        ),
    ] = None
    freeze_text: Annotated[
        int | None,
        Setting(
            "Freeze the embeddings and the first LAYERS layers of the text tower.",
            OPTIMIZER,
            metavar="LAYERS",
            default="none",
            least=0,
        ),
    ] = None
    patch_dropout: Annotated[
        float | None,
        Setting(
            "Share of an image's patches that the image tower does not see, except in the last tenth of the "
            "steps, or in the decay of wsd if that is shorter. Not for NaFlex students.",
            OPTIMIZER,
            metavar="SHARE",
            default="none",
            above=0,
            below=1,
        ),
    ] = None
    projection_lr: Annotated[
        float, Setting("Peak learning rate of the learned map.", OPTIMIZER, metavar="RATE", above=0)
    ] = 1e-3
    weight_decay: Annotated[
        float | None,
        Setting(
            "Weight decay of the student's matrices.",
            OPTIMIZER,
            default="0; with --from-scratch 1e-4",
            least=0,
        ),
    ] = None
    warmup_steps: Annotated[
        int | None,
        Setting(
            "Steps in which the learning rate rises.",
            OPTIMIZER,
            default="200, at most half of the steps; with --schedule cosine 5% of the steps if that is more",
            least=0,
        ),
    ] = None
    schedule: Annotated[
        ScheduleKind,
        Setting(
            "Schedule of the learning rate after the warm-up. wsd: constant, and decays to 0 in the last "
            "--decay-steps; a finished run continues with more --steps from where its decay began. "
            "cosine: decays to 0 over all steps.",
            OPTIMIZER,
        ),
    ] = "wsd"
    decay_steps: Annotated[
        int | None,
        Setting(
            "Last steps, in which --schedule wsd decays.",
            OPTIMIZER,
            metavar="STEPS",
            default="a fifth of the steps",
            least=1,
        ),
    ] = None
    ema: Annotated[
        float | None,
        Setting(
            "Also keep an exponential moving average of the weights, with this decay for each 256 "
            "images, such as 0.9999.",
            OPTIMIZER,
            metavar="DECAY",
            above=0,
            below=1,
        ),
    ] = None
    clip_norm: Annotated[float, Setting("Largest norm of the gradient.", OPTIMIZER, above=0)] = 1.0
    max_nonfinite_steps: Annotated[
        int,
        Setting(
            "Steps in a row with a loss or gradient that is not finite, after which the run ends; "
            "fewer are skipped.",
            OPTIMIZER,
            metavar="STEPS",
            least=1,
        ),
    ] = 10
    seed: Annotated[
        int,
        Setting(
            "Random seed of order, captions, views, bank texts, new weights.", OPTIMIZER, least=0
        ),
    ] = 0

    corpus_roots: Annotated[
        Mapping[str, str],
        Setting(
            "The corpus has moved from OLD to NEW. Repeatable.",
            CORPUS,
            metavar="OLD=NEW",
            flag="--corpus-root",
        ),
    ] = field(default_factory=dict[str, str])
    check_pixels: Annotated[
        CheckPixels,
        Setting(
            "When to compare an image's bytes with those the teacher saw; others are skipped. The bytes are "
            "hashed in any case.",
            CORPUS,
        ),
    ] = "always"
    pixels: Annotated[
        Pixels,
        Setting(
            "Images to read. corpus: its files. kept: those of build --keep-pixels, which need no corpus. "
            "auto: kept, if all are kept and at least as large as the student's.",
            CORPUS,
        ),
    ] = "auto"
    decode: Annotated[
        Literal["exact", "scaled"],
        Setting(
            "exact: the pixels of the student's processor. scaled: decode large JPEGs at reduced "
            "size, faster and nearly the same.",
            CORPUS,
        ),
    ] = "exact"
    sample_timeout: Annotated[
        float,
        Setting(
            "Leave out an image that takes longer to decode.", CORPUS, metavar="SECONDS", above=0
        ),
    ] = 60.0
    allow_partial: Annotated[
        bool, Setting("Train on what is committed of an unfinished cache.", CORPUS)
    ] = False

    val_share: Annotated[
        float | None,
        Setting(
            "Share of different images to hold out, 0 to 1.",
            HELD_OUT,
            metavar="SHARE",
            default="0.05",
        ),
    ] = None
    val_keys: Annotated[
        str | None,
        Setting(
            "Hold out images whose keys match, such as 'validation/*', instead of a share.",
            HELD_OUT,
            metavar="PATTERN",
        ),
    ] = None
    eval_samples: Annotated[
        int,
        Setting(
            "Most held-out images to evaluate before and after training; 0: none.",
            HELD_OUT,
            least=0,
        ),
    ] = 10_000

    eval_every: Annotated[
        int | None,
        Setting(
            "Steps between evaluations of the model, and of its EMA, during the training.",
            HELD_OUT,
            metavar="STEPS",
            default="none",
            least=1,
        ),
    ] = None
    eval_every_samples: Annotated[
        int,
        Setting(
            "Most held-out images in each evaluation of --eval-every.",
            HELD_OUT,
            metavar="N",
            least=1,
        ),
    ] = 2000
    best_metric: Annotated[
        BestMetric | None,
        Setting(
            "Metric of these by which the best weights are kept.",
            HELD_OUT,
            metavar="METRIC",
            default="mean_r1; image_correlation without captions",
        ),
    ] = None

    device: Annotated[
        str,
        Setting("auto (cuda, mps or cpu), or a device such as cuda:1.", HARDWARE, metavar="DEVICE"),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Setting(
            "float32, bfloat16 (by autocast), or auto: bfloat16 on cuda.", HARDWARE, metavar="DTYPE"
        ),
    ] = "auto"
    micro_batch_size: Annotated[
        int | None,
        Setting(
            "Images, and texts, in one forward pass of one process; the gradient stays exact.",
            HARDWARE,
            default="all of the process",
            least=1,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool, Setting("Recompute activations: less memory, a third more computing.", HARDWARE)
    ] = False
    compile: Annotated[
        bool, Setting("Compile the layers of the towers with torch.compile.", HARDWARE)
    ] = False
    decode_workers: Annotated[
        int | None,
        Setting(
            "Processes that decode images for each process of the training; 0: none.",
            HARDWARE,
            default="its share of the machine's cores less 2, at least 1",
            least=0,
        ),
    ] = None

    save_every: Annotated[
        int | None,
        Setting(
            "Steps between checkpoints.",
            FILES,
            default="a twentieth of all steps, 10 to 1000",
            least=1,
        ),
    ] = None
    keep_checkpoints: Annotated[int, Setting("Newest checkpoints to keep.", FILES, least=1)] = 2
    export: Annotated[
        ExportChoice,
        Setting(
            "Weights of RUN/model: of the last step, the best by --best-metric, or the last EMA.",
            FILES,
        ),
    ] = "last"
    wandb: Annotated[
        str | None,
        Setting(
            "Also log the metrics to this project of Weights & Biases (extra: wandb).",
            FILES,
            metavar="PROJECT",
        ),
    ] = None
    tensorboard: Annotated[
        bool, Setting("Also write RUN/tensorboard (extra: tensorboard).", FILES)
    ] = False
    cache_dir: Annotated[
        Path | None,
        Setting(
            "Folder for local copies of a remote cache, shared by all processes of a machine.",
            FILES,
            metavar="FOLDER",
            default="$SIGLIP2_CACHE_DIR, else ~/.cache/siglip2-cache",
        ),
    ] = None
    cache_limit: Annotated[
        str | None,
        Setting(
            "Most bytes of local copies in --cache-dir, such as 500GB.",
            FILES,
            metavar="SIZE",
            default="$SIGLIP2_CACHE_LIMIT, else four fifths of the free disk space, the copies included",
        ),
    ] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))  # callers from Python may give a text
        check_config(self, SETTINGS)

    @property
    def teacher_weights(self) -> Mapping[str, float]:
        """Weight of each teacher that is named, the first one first; empty: the only one of the cache."""
        if self.teacher is None:
            return {}
        return {self.teacher: 1.0} if isinstance(self.teacher, str) else self.teacher


def images_read(config: TrainConfig) -> int:
    """Return the images that are read for one step, over all processes."""
    is_larger = parse_selection(config.select).kind == "learnability"
    return config.global_batch_size * (config.super_batch if is_larger else 1)


def _settings() -> dict[str, tuple[Any, Setting]]:
    hints = typing.get_type_hints(TrainConfig, include_extras=True)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Annotated}


SETTINGS = _settings()
"""Type and setting of each field, in the order of the class."""
