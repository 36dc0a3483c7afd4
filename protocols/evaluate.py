"""Evaluation of a model on a benchmark from local files: what ``siglip2-cache eval --protocol`` runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..cores import decoders_for, num_cores
from ..errors import SettingError
from ..formatting import format_count
from ..precompute.sources import Problem, Sample, open_source
from ..progress import TaskProgress
from ..siglip import (
    Checkpoint,
    find_text_cleaning,
    load_model,
    logit_scale_and_bias,
    read_text_settings,
    resolve_checkpoint,
    resolve_compute_dtype,
    resolve_device,
)
from ..store.io.location import Location, join
from ..store.io.requests import kind_of
from ..student.data.split import number_pictures
from ..student.evaluation.compare import Comparison
from ..student.evaluation.embeddings import Embeddings, student_embeddings
from ..student.evaluation.evaluate import evaluate
from ..student.evaluation.report import INTERVALS, table_lines, zero_shot_lines
from .classes import prompts_for
from .karpathy import read_karpathy
from .pairs import Pairs, collect, make_pairs
from .xm3600 import read_xm3600

Protocol = Literal["coco", "corpus", "flickr30k", "imagenet", "xm3600"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

_PUBLISHED = {"coco": 5_000, "flickr30k": 1_000, "imagenet": 50_000, "xm3600": 3_600}
"""Images of each benchmark; those of the test split where there are several."""

_KARPATHY = ("coco", "flickr30k")
_OF_CAPTIONS = (*_KARPATHY, "xm3600")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolConfig:
    """Settings of one evaluation on a benchmark."""

    model: str
    """Hub id or folder of a SigLIP or SigLIP 2 checkpoint with both towers."""

    protocol: Protocol
    """coco, flickr30k: retrieval on a split of Karpathy; xm3600: retrieval in 36 languages; imagenet:
    zero-shot classification of a tree of folders; corpus: whatever a build reads, by its captions and
    labels."""

    data: Location
    """dataset_coco.json or dataset_flickr30k.json; the folder of captions.jsonl; or the corpus."""

    images: Location | None = None
    """Folder of the images of coco, flickr30k and xm3600. None: the folder of the file; of xm3600 ``images``
    in it."""

    split: str | None = None
    """Split of coco and flickr30k: test, val, train or restval; None: test."""

    labels: Path | None = None
    """File of class names; None: the labels themselves."""

    templates: Path | None = None
    """File of templates with one ``{}`` each; None: the 80 of CLIP."""

    samples: int | None = None
    """Most images, a random choice of more; None: all."""

    seed: int = 0
    """Random seed of that choice, of the pairs of the calibration error, and of the intervals."""

    device: str = "auto"
    dtype: str = "auto"
    """Dtype of the forward pass; auto: bfloat16 on cuda, else that of the stored weights."""

    batch_size: int = 32
    """Images, and texts, in one forward pass."""

    decode_workers: int | None = None
    """Decoding processes; 0: decode in this process; None: one a core, at most 16."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise SettingError(
                f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}"
            )
        for name, least in (("samples", 1), ("batch_size", 1), ("seed", 0), ("decode_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                words = name.replace("_", " ")
                raise SettingError(f"{words} must be at least {least}, got {value}")
        of_captions = self.protocol in _OF_CAPTIONS
        if self.images is not None and not of_captions:
            raise SettingError(f"images has no meaning for protocol {self.protocol}; leave it out")
        if self.split is not None and self.protocol not in _KARPATHY:
            raise SettingError(f"protocol {self.protocol} has no splits; leave out split")
        if of_captions and (self.labels, self.templates) != (None, None):
            raise SettingError(
                f"protocol {self.protocol} has no classes; leave out labels and templates"
            )


def evaluate_protocol(
    config: ProtocolConfig, *, progress: TaskProgress | None = None
) -> Comparison:
    """Evaluate a model on a benchmark.

    Args:
        config: what to evaluate.
        progress: shows how far it is; None: nothing is shown.

    Raises:
        SettingError, SourceError, TrainError, CheckpointError: model, data or settings cannot be used.
    """
    checkpoint = resolve_checkpoint(config.model)
    items, root = _open(config)
    samples, labels, problems = collect(items, max_images=config.samples, seed=config.seed)
    if not samples:
        first = f" (first: {problems[0].place}: {problems[0].reason})" if problems else ""
        raise SettingError(f"{config.data} has no image that can be used{first}")
    prompts = prompts_for(labels, labels=config.labels, templates=config.templates)
    if all(sample.label is None for sample in samples):
        prompts = []  # so that no text is embedded in vain
    pairs = make_pairs(samples, root, prompts, _cleaning(checkpoint))
    if config.protocol == "imagenet" and not len(pairs.eval_set.class_Q):
        raise SettingError(f"{config.data} has no folders of classes, such as val/n01440764/IMAGE")
    if not pairs.texts:
        raise SettingError(f"no image of {config.data} has a caption or a label")
    found = _embed(config, checkpoint, pairs, progress)
    eval_set = replace(pairs.eval_set, picture_N=_pictures(len(samples), found))
    column = evaluate(found, None, eval_set, seed=config.seed)
    numbers = _numbers(config, pairs, problems)
    lines = [
        f"model      {checkpoint.name}: {checkpoint.given}",
        f"protocol   {config.protocol}: {config.data}"
        + (f", split {numbers['split']}" if numbers["split"] else ""),
        *_size_lines(config, numbers),
        *_problem_lines(problems),
        *_missing_lines(samples, found),
        *zero_shot_lines(numbers),
        "",
        *table_lines({"model": column}, None, has_intervals=True),
        INTERVALS,
    ]
    return Comparison(found={"gallery": numbers, "columns": {"model": column}}, lines=lines)


def _open(config: ProtocolConfig) -> tuple[Iterator[Sample | Problem], Location]:
    """Return samples of the data, and the folder that their paths are relative to."""
    if config.protocol in _KARPATHY:
        if kind_of(config.data) != "file":
            raise SettingError(
                f"there is no file {config.data}; expected dataset_{config.protocol}.json of Karpathy"
            )
        images = config.images or config.data.parent
        return read_karpathy(config.data, images, config.split or "test"), images
    if config.protocol == "xm3600":
        captions = join(config.data, "captions.jsonl")
        if kind_of(captions) != "file":
            raise SettingError(f"there is no {captions}; expected the folder of captions.zip")
        images = config.images or join(config.data, "images")
        return read_xm3600(captions, images), images
    source = open_source(config.data)
    return source.scan(), source.root


def _cleaning(checkpoint: Checkpoint) -> Callable[[str], str]:
    name = read_text_settings(checkpoint.folder).cleaning
    return find_text_cleaning(name) or str


def _embed(
    config: ProtocolConfig, checkpoint: Checkpoint, pairs: Pairs, progress: TaskProgress | None
) -> Embeddings:
    device = resolve_device(config.device)
    dtype = resolve_compute_dtype(checkpoint, device, config.dtype)
    workers = config.decode_workers
    return student_embeddings(
        load_model(checkpoint, device=device, compute_dtype=dtype),
        checkpoint,
        pairs.refs,
        pairs.texts,
        device=device,
        compute_dtype=dtype,
        batch_size=config.batch_size,
        num_workers=decoders_for(num_cores()) if workers is None else workers,
        logit=logit_scale_and_bias(checkpoint),  # a model in bfloat16 has them rounded
        progress=progress,
        hint="; name the folder of the images with --images"
        if config.protocol in _OF_CAPTIONS
        else "",
    )


def _pictures(num_images: int, found: Embeddings) -> NDArray[np.int64]:
    """Return for each image the position of the first one with the same bytes, (N,)."""
    pictures, read = np.arange(num_images), np.array(sorted(found.sha256))
    hashes = np.frombuffer(b"".join(found.sha256[image] for image in read), np.uint8)
    pictures[read] = read[number_pictures(hashes.reshape(-1, 32))]
    return pictures


def _numbers(config: ProtocolConfig, pairs: Pairs, problems: Sequence[Problem]) -> dict[str, Any]:
    """Return the counts of what is evaluated, as JSON values."""
    eval_set = pairs.eval_set
    return {
        "protocol": config.protocol,
        "data": str(config.data),
        "split": (config.split or "test") if config.protocol in _KARPATHY else None,
        "images": len(pairs.refs),
        "captioned_images": eval_set.num_captioned,
        "captions": eval_set.num_captions,
        "prompts": len(eval_set.prompt_Q),
        "has_prompts": eval_set.has_prompts,
        "labelled_images": eval_set.num_labelled,
        "prompted_images": int((eval_set.label_N >= 0).sum()),
        "classes_without_prompt": list(eval_set.unprompted),
        "problems": len(problems),
    }


def _size_lines(config: ProtocolConfig, numbers: dict[str, Any]) -> Iterator[str]:
    count, published = numbers["images"], _PUBLISHED.get(config.protocol)
    is_part = published is not None and count != published and numbers["split"] in (None, "test")
    yield f"images     {count:,}" + (f"; the benchmark has {published:,}" if is_part else "")
    captions = format_count(numbers["captions"], "different caption")
    yield f"texts      {captions}; {format_count(numbers['prompts'], 'prompt')}"


def _problem_lines(problems: Sequence[Problem]) -> Iterator[str]:
    if problems:
        first = problems[0]
        yield f"problems   {len(problems):,}, first: {first.place}: {first.reason}"


def _missing_lines(samples: Sequence[Sample], found: Embeddings) -> Iterator[str]:
    if found.faults:
        row, reason = next(iter(found.faults.items()))
        count = format_count(len(found.faults), "image")
        yield f"missing    {count}, counted as misses (first: {samples[row].path!r}, {reason})"
