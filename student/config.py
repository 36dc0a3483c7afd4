"""Settings of one training, from a YAML file and the command line; written whole beside its results."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from upath import UPath

from ..errors import SettingError, first_line
from ..siglip import Towers
from ..store.locations import Location, is_url, parse_location

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
    """Where copies of a remote cache's files lie; None: the default folder (store/copies.py)."""

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
    """None: 200 or 5 % of the steps, whichever is more, at most half of them."""

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

    val_share: float = 0.05
    """Share of different pictures held out for evaluation."""

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
                raise SettingError(f"weights has no term {term!r}{_nearest(term, TERMS)}")
            if not (math.isfinite(weight) and weight >= 0):
                raise SettingError(f"weights.{term} must be at least 0, got {weight}")
        if self.steps is not None and self.epochs is not None:
            raise SettingError(
                f"steps {self.steps} and epochs {self.epochs:g} both say how long: give one"
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


def make_config(file: Path | None, flags: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a YAML file, overridden by flags; None among the flags means not given.

    ``weights`` of the flags override single terms; ``steps`` overrides ``epochs`` and the other way
    round.

    Raises:
        SettingError: an unknown setting (the nearest known one is named), a value of another type, a
            setting that is missing.
    """
    found = {} if file is None else _read_yaml(file)
    given = {name: value for name, value in flags.items() if value is not None}
    if "weights" in given:
        of_file = _typed("weights", found.get("weights") or {}, file)
        given["weights"] = {**of_file, **given["weights"]}
    if given.keys() & {"steps", "epochs"}:
        found = {name: value for name, value in found.items() if name not in ("steps", "epochs")}
    merged = {**found, **given}
    for name, flag in (("cache", "CACHE"), ("student", "--student"), ("out", "--out")):
        if merged.get(name) is None:
            raise SettingError(f"{flag} is missing: name it, or {name} in a file given by --config")
    return TrainConfig(**{name: _typed(name, value, file) for name, value in merged.items()})


def as_plain(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as plain values, for YAML and for comparing."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path | UPath):
            return str(value)
        return dict(value) if isinstance(value, Mapping) else value

    return {each.name: plain(getattr(config, each.name)) for each in fields(config)}


def to_yaml(config: TrainConfig) -> str:
    """Return the settings as a YAML file that --config takes."""
    import yaml

    return yaml.safe_dump(as_plain(config), sort_keys=False, allow_unicode=True)


_MAY_CHANGE = {
    *("cache", "student", "out", "corpus_roots", "teacher_text", "micro_batch_size", "device"),
    *("gradient_checkpointing", "compile", "check_pixels", "decode_workers", "sample_timeout"),
    *("save_every", "keep_checkpoints", "tensorboard", "cache_dir", "cache_limit"),
}
"""Where things are and how they are computed; which cache and student they are is compared apart."""


def refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any], *, run: Path) -> None:
    """Refuse to go on with other settings than a run was begun with.

    Raises:
        SettingError: naming the first setting, its old and its new value.
    """
    for name in sorted(new.keys() - _MAY_CHANGE):
        if name not in old or old[name] != new[name]:
            was = old.get(name, "not known")
            raise SettingError(
                f"{run} was begun with {name} {was!r}, now it is {new[name]!r}; go on with the old "
                "value, or begin another run with another --out"
            )


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"there is no file {path}; --config takes a YAML file") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} cannot be read as YAML: {first_line(error)}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise SettingError(f"{path} holds no settings: it should be lines such as 'steps: 1000'")
    known = [each.name for each in fields(TrainConfig)]
    settings = cast("dict[Any, Any]", found)
    for name in settings:
        if name not in known:
            raise SettingError(f"{path} has an unknown setting {name!r}{_nearest(name, known)}")
    return {str(name): value for name, value in settings.items() if value is not None}


def _typed(name: str, value: Any, file: Path | None) -> Any:
    """Return a value as its field has it: a whole number for a float, a text for a path."""
    wanted = _TYPES[name]
    if name == "cache" and isinstance(value, str | Path | UPath):
        return parse_location(value) if is_url(str(value)) else Path(str(value))
    if wanted is Path and isinstance(value, str | Path):
        return Path(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is float and isinstance(value, str):  # YAML 1.1 takes 1e-5 for a text
        value = _as_number(value)
        is_number = isinstance(value, float)
    if wanted is float and is_number:
        return float(value)
    if wanted is dict and isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        if name != "weights":
            return {str(key): str(entry) for key, entry in entries.items()}
        weights = {term: _as_number(w) if isinstance(w, str) else w for term, w in entries.items()}
        if all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights.values()):
            return {term: float(w) for term, w in weights.items()}
    elif wanted is not dict and type(value) is wanted:
        return value
    where = f"{file}: " if file else ""
    raise SettingError(f"{where}{name} must be {_SAID[wanted]}, got {value!r}")


def _as_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _nearest(name: object, known: typing.Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(names)}"


def _plain_type(hint: Any) -> type:
    """Return the one type that a field's values have beside None."""
    origin = typing.get_origin(hint)
    if hint == Location:
        return Path
    if origin in (typing.Union, types.UnionType):
        [hint] = [each for each in get_args(hint) if each is not type(None)]
        origin = typing.get_origin(hint)
    if origin is Literal:
        return str
    return dict if origin is not None else hint


_TYPES = {
    name: _plain_type(hint)
    for name, hint in typing.get_type_hints(TrainConfig).items()
    if name in {each.name for each in dataclasses.fields(TrainConfig)}
}
_SAID = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "names with values",
    Path: "a path",
}
