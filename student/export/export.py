"""Export of a student as a Hugging Face folder that plain transformers loads correctly.

tokenizer.py has the part that needs care. Weights are float32, as trained, unless asked otherwise.
For a teacher's text tower stored in bfloat16 that doubles its bytes, but the map folded into its head would
lose as much to bfloat16 as the embeddings themselves do.

Shape letters in this file: E = the teacher's embedding width, D = the student's.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import CheckpointError
from ...siglip import Checkpoint, towers_of
from ...siglip.config import Tower, read_towers
from ...siglip.files import save_weights, weight_files, write_json
from ...siglip.loading import quiet_transformers
from ...version import __version__
from .atomic_folder import MARK, replaced_atomically
from .image_processor import processor_class_to_name, write_image_processor
from .model_card import ModelCard, render_card
from .programs import try_programs
from .sentence_transformers import write_sentence_transformers
from .tokenizer import write_tokenizer

WeightsDtype = Literal["float32", "bfloat16"]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers.models.siglip import SiglipModel, SiglipTextModel, SiglipVisionModel
    from transformers.models.siglip2 import Siglip2Model, Siglip2TextModel, Siglip2VisionModel

    _Tensors = dict[str, Tensor]


def export_model(
    model: "SiglipModel | Siglip2Model",
    checkpoint: Checkpoint,
    out: Path,
    *,
    card: ModelCard,
    extra: Mapping[str, Any] | None = None,
    dtype: WeightsDtype = "float32",
    files: Mapping[str, bytes] | None = None,
    to_teacher_ED: "NDArray[np.float32] | None" = None,
) -> None:
    """Write a student of two towers, whole or not at all, in place of an earlier export.

    Args:
        model: the student, on any device; not changed.
        checkpoint: what it started from; has the tokenizer and the image processor.
        out: the folder.
        card: README.md.
        extra: JSON values for siglip2_cache.json.
        dtype: dtype of the weights; scale and bias of the logits are always float32.
        files: more files to write, by name.
        to_teacher_ED: map to the teacher's space that sentence-transformers applies; None: it applies none.

    Raises:
        SettingError: ``out`` exists and is no earlier export.
        CheckpointError: the checkpoint's tokenizer files are missing or damaged.
        DiskFullError: the disk is full; ``out`` is unchanged.
    """
    student: Any = model
    with replaced_atomically(out) as folder:
        config = copy.deepcopy(student.config)
        processor_class = processor_class_to_name(checkpoint, checkpoint)
        _write_text_part(folder, config.text_config, checkpoint, processor_class)
        _write_model(folder, type(model), config, student.state_dict(), dtype)
        write_image_processor(folder, checkpoint, processor_class)
        _write_extra(folder, extra, files)
        parts: dict[Tower, Checkpoint] = {"image": checkpoint, "text": checkpoint}
        _write_card(folder, card, type(model), parts, to_teacher_ED)


def export_tower(
    tower: "SiglipVisionModel | Siglip2VisionModel | SiglipTextModel | Siglip2TextModel",
    logit_scale: float,
    logit_bias: float,
    checkpoint: Checkpoint,
    out: Path,
    *,
    other: Checkpoint | None,
    text_map: "NDArray[np.floating[Any]] | None",
    card: ModelCard,
    extra: Mapping[str, Any] | None = None,
    dtype: WeightsDtype = "float32",
    files: Mapping[str, bytes] | None = None,
    to_teacher_ED: "NDArray[np.float32] | None" = None,
) -> None:
    """Write a tower that was trained against cached embeddings, beside the other tower of another checkpoint.

    The map is folded into the head of the text tower, ``head' = text_map.T @ head``, so that a text's
    embedding is mapped. Normalising before or after a linear map gives the same direction. An image tower has
    no layer that could take a map.

    Without another tower the folder holds one tower, and its image processor or tokenizer; scale and bias
    are then in siglip2_cache.json.

    Args:
        tower: the student's tower, on any device; not changed.
        logit_scale: a logarithm, as stored in checkpoints.
        logit_bias: as stored in checkpoints.
        checkpoint: what the student started from; has the image processor or the tokenizer.
        out: the folder.
        other: checkpoint of which only the other tower is read; None: none.
        text_map: (old width, new width), maps texts by ``rows @ text_map``; None: they are unchanged.
        card: README.md.
        extra: JSON values for siglip2_cache.json.
        dtype: dtype of the weights; scale and bias of the logits are always float32.
        files: more files to write, by name.
        to_teacher_ED: map to the teacher's space that sentence-transformers applies; None: it applies none.

    Raises:
        ValueError: the shape of the map does not fit the widths.
        SettingError: ``out`` exists and is no earlier export.
        CheckpointError: the other checkpoint's files are missing or damaged.
        DiskFullError: the disk is full; ``out`` is unchanged.
    """
    own: Any = tower
    trained: Tower = "image" if towers_of(tower) == "image" else "text"
    weights = {_PREFIX[trained] + name: tensor for name, tensor in own.state_dict().items()}
    parts: dict[Tower, _Part] = {trained: _Part(checkpoint, own.config.to_dict(), weights)}
    if other is None:
        extra = {**(extra or {}), "logit_scale": logit_scale, "logit_bias": logit_bias}
    else:
        missing: Tower = "text" if trained == "image" else "image"
        parts[missing] = _part_of(other, missing)
    image, text = parts.get("image"), parts.get("text")
    if text is not None:
        text = parts["text"] = _mapped(text, text_map, image)
    with replaced_atomically(out) as folder:
        if image is not None and text is not None:
            model_class, config = _joined(image, text)
            processor_class = processor_class_to_name(image.checkpoint, text.checkpoint)
            _write_text_part(folder, config.text_config, text.checkpoint, processor_class)
            tensors = image.tensors | text.tensors | _constants(logit_scale, logit_bias)
        else:
            [part] = parts.values()
            model_class, processor_class = type(tower), None
            config, tensors = type(own.config)(**part.config), part.tensors
            if text is not None:
                _write_text_part(folder, config, checkpoint, None)
        _write_model(folder, model_class, config, tensors, dtype)
        if image is not None:
            write_image_processor(folder, image.checkpoint, processor_class)
        _write_extra(folder, extra, files)
        checkpoints: dict[Tower, Checkpoint] = {
            each: part.checkpoint for each, part in parts.items()
        }
        _write_card(folder, card, model_class, checkpoints, to_teacher_ED)


@dataclass(frozen=True, slots=True)
class _Part:
    """One tower."""

    checkpoint: Checkpoint
    config: dict[str, Any]
    tensors: "_Tensors"
    """By name with the prefix of the tower: transformers 4 needs it for a tower alone too, 5 reads both."""


_PREFIX: dict[Tower, str] = {"image": "vision_model.", "text": "text_model."}


def _part_of(checkpoint: Checkpoint, tower: Tower) -> _Part:
    """Return a tower of a checkpoint in float32; reads no other weights."""
    from safetensors import safe_open

    prefix, tensors = _PREFIX[tower], dict[str, Any]()
    for path in weight_files(checkpoint.folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dict
                if name.startswith(prefix):
                    tensors[name] = file.get_tensor(name).float()
    settings = read_towers(checkpoint.folder, needed=(tower,))
    return _Part(checkpoint, settings.vision if tower == "image" else settings.text, tensors)


def _mapped(text: _Part, text_map: "NDArray[Any] | None", image: _Part | None) -> _Part:
    """Return a text tower with a map folded into its head.

    Raises:
        ValueError: the map does not lead from the width of the texts to that of the images.
        CheckpointError: the head is missing.
    """
    import torch

    old = text.checkpoint.embed_dim
    new = image.checkpoint.embed_dim if image is not None else old if text_map is None else None
    if text_map is None:
        if new != old:
            raise ValueError(f"texts of width {old} and images of width {new}: a map is needed")
        return replace(text, config={**text.config, "projection_size": old})
    if text_map.shape[0] != old or new not in (None, text_map.shape[1]):
        wanted = f"({old}, {'any width' if new is None else new})"
        raise ValueError(f"the map must be of shape {wanted}, got {text_map.shape}")
    map_NO, mapped = torch.from_numpy(text_map).double().T, dict(text.tensors)
    for name in ("text_model.head.weight", "text_model.head.bias"):
        if name not in mapped:
            raise CheckpointError(f"{text.checkpoint.folder} holds no {name} among its weights")
        mapped[name] = (map_NO @ mapped[name].detach().cpu().double()).float()
    config = {**text.config, "projection_size": text_map.shape[1]}
    return replace(text, config=config, tensors=mapped)


def _joined(image: _Part, text: _Part) -> tuple[Any, Any]:
    """Return class and config of a model of two towers; the image tower decides whether it is NaFlex."""
    from transformers.models.siglip import SiglipConfig, SiglipModel
    from transformers.models.siglip2 import Siglip2Config, Siglip2Model

    is_naflex = image.checkpoint.model_type == "siglip2"
    config_class: Any = Siglip2Config if is_naflex else SiglipConfig
    config = config_class(text_config=text.config, vision_config=image.config)
    return Siglip2Model if is_naflex else SiglipModel, config


def write_settings(config: Any, checkpoint: Checkpoint, folder: Path) -> None:
    """Write config.json, and the tokenizer and the image processor of the towers that there are, no weights.

    tokenizer.json cleans texts by itself, those of SigLIP 1 too: other runtimes have no code that would.

    Args:
        config: that of the model; not changed.
        checkpoint: what the model was loaded from.
        folder: an existing folder.

    Raises:
        CheckpointError: the tokenizer files are missing or damaged.
    """
    config, processor_class = copy.deepcopy(config), None
    if checkpoint.has_image and checkpoint.has_text:
        processor_class = processor_class_to_name(checkpoint, checkpoint)
    if checkpoint.has_text:
        text_config = getattr(config, "text_config", config)
        _write_text_part(folder, text_config, checkpoint, processor_class, cleans_itself=True)
    with quiet_transformers():
        config.save_pretrained(folder)
    if checkpoint.has_image:
        write_image_processor(folder, checkpoint, processor_class)


def _constants(logit_scale: float, logit_bias: float) -> "_Tensors":
    import torch

    return {
        "logit_scale": torch.tensor([logit_scale]),
        "logit_bias": torch.tensor([logit_bias]),
    }


def _write_text_part(
    folder: Path,
    text_config: Any,
    checkpoint: Checkpoint,
    processor_class: str | None,
    *,
    cleans_itself: bool = False,
) -> None:
    """Write the tokenizer and set its special ids in the config; SigLIP 2's are not the defaults."""
    ids = write_tokenizer(
        checkpoint, folder, processor_class=processor_class, cleans_itself=cleans_itself
    )
    for name, value in ids.items():
        setattr(text_config, name, value)


def _write_model(
    folder: Path, model_class: Any, config: Any, tensors: "_Tensors", dtype: WeightsDtype
) -> None:
    """Write config.json and model.safetensors.

    Raises:
        CheckpointError: names or shapes of the tensors differ from the model's.
    """
    import torch

    _check_tensors(model_class, config, tensors)
    config.architectures = [model_class.__name__]
    config.dtype = getattr(torch, dtype)
    with quiet_transformers():  # it warns of its own default ids
        config.save_pretrained(folder)
    stored = {
        name: tensor.detach()
        .to("cpu", torch.float32 if name.startswith("logit_") else config.dtype)
        .contiguous()
        for name, tensor in tensors.items()
    }
    save_weights(folder / "model.safetensors", stored)


def _check_tensors(model_class: Any, config: Any, tensors: "_Tensors") -> None:
    import torch

    with torch.device("meta"):
        expected = model_class(config).state_dict()
    ends = {"VisionModel": _PREFIX["image"], "TextModel": _PREFIX["text"]}
    prefix = next((p for end, p in ends.items() if model_class.__name__.endswith(end)), "")
    shapes = {prefix + name: tuple(tensor.shape) for name, tensor in expected.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} weights do not fit a {model_class.__name__} of this config: {wrong[0]} has "
            f"shape {found.get(wrong[0])}, expected {shapes.get(wrong[0])}"
        )


def _write_extra(
    folder: Path, extra: Mapping[str, Any] | None, files: Mapping[str, bytes] | None
) -> None:
    for name, data in (files or {}).items():
        (folder / name).write_bytes(data)
    write_json(folder / MARK, {**(extra or {}), "written_by": f"siglip2-cache {__version__}"})


def _write_card(
    folder: Path,
    card: ModelCard,
    model_class: Any,
    parts: Mapping[Tower, Checkpoint],
    to_teacher_ED: "NDArray[np.float32] | None",
) -> None:
    """Write the files of sentence-transformers, then README.md, which describes their use.

    ``parts`` are the checkpoints of the towers that there are.
    """
    image, text = parts.get("image"), parts.get("text")
    programs = None if text is None else try_programs(text, folder, image=image)
    has_sentence_transformers = programs is None or programs.has_sentence_transformers
    if has_sentence_transformers:
        write_sentence_transformers(folder, text, to_teacher_ED)
    rendered = render_card(
        card,
        text_class=None if image is not None else model_class.__name__,
        tokenizer_class=programs.tokenizer_class if programs else None,
        max_text_tokens=text.max_text_tokens if text else 0,
        has_pipeline=programs is not None and programs.has_pipeline,
        has_sentence_transformers=has_sentence_transformers,
        widths=None if to_teacher_ED is None else to_teacher_ED.shape[::-1],
    )
    (folder / "README.md").write_text(rendered, encoding="utf-8")
