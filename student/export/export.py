"""Export of a student as a Hugging Face folder that plain transformers loads correctly.

tokenizer.py has the part that needs care. Weights are float32, as trained, unless asked otherwise.
For a teacher's text tower stored in bfloat16 that doubles its bytes, but the map folded into its head would
lose as much to bfloat16 as the embeddings themselves do.

Shape letters in this file: E = the teacher's embedding width, D = the student's.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import CheckpointError
from ...siglip import Checkpoint
from ...siglip.config import ModelType, read_towers
from ...siglip.files import weight_files, write_json
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
    from transformers import (
        Siglip2Model,
        Siglip2VisionModel,
        SiglipModel,
        SiglipVisionModel,
    )

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

    Raises:
        SettingError: ``out`` exists and is no earlier export.
        CheckpointError: the checkpoint's tokenizer files are missing or damaged.
        DiskFullError: the disk is full; ``out`` is unchanged.
    """
    student: Any = model
    with replaced_atomically(out) as folder:
        config = copy.deepcopy(student.config)
        _write_text_part(
            folder, config, checkpoint, processor_class_to_name(checkpoint, checkpoint)
        )
        _write_model(folder, type(model), config, student.state_dict(), dtype)
        write_image_processor(folder, checkpoint, processor_class_to_name(checkpoint, checkpoint))
        _write_extra(folder, extra, files)
        _write_card(folder, card, checkpoint, checkpoint.model_type)


def export_image_tower(
    vision_model: "SiglipVisionModel | Siglip2VisionModel",
    logit_scale: float,
    logit_bias: float,
    checkpoint: Checkpoint,
    out: Path,
    *,
    teacher_text: Checkpoint | None,
    map_ED: "NDArray[np.floating[Any]] | None",
    card: ModelCard,
    extra: Mapping[str, Any] | None = None,
    dtype: WeightsDtype = "float32",
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write an image tower that was trained with cached texts, beside the teacher's text tower.

    The map is folded into the text tower's head, ``head' = map_ED.T @ head``, so that a text's embedding is
    the teacher's, mapped. Normalising before or after a linear map gives the same direction.

    Without a teacher's text tower the folder holds a SiglipVisionModel and an image processor; scale and
    bias are then in siglip2_cache.json.

    Args:
        vision_model: the student's image tower, on any device; not changed.
        logit_scale: a logarithm, as stored in checkpoints.
        logit_bias: as stored in checkpoints.
        checkpoint: what the student started from; has the image processor.
        out: the folder.
        teacher_text: the teacher, of which only the text tower is read; None: no text tower.
        map_ED: (E, D), maps the teacher's embeddings by ``rows @ map_ED``; None: D equals E.
        card: README.md.
        extra: JSON values for siglip2_cache.json.
        dtype: dtype of the weights; scale and bias of the logits are always float32.
        files: more files to write, by name.

    Raises:
        ValueError: the shape of the map does not fit the widths.
        SettingError: ``out`` exists and is no earlier export.
        CheckpointError: the teacher's files are missing or damaged.
        DiskFullError: the disk is full; ``out`` is unchanged.
    """
    tower: Any = vision_model
    vision = {f"vision_model.{name}": tensor for name, tensor in tower.state_dict().items()}
    if teacher_text is None:
        extra = {**(extra or {}), "logit_scale": logit_scale, "logit_bias": logit_bias}
    else:
        _check_map(map_ED, teacher_text.embed_dim, tower.config.hidden_size)
    with replaced_atomically(out) as folder:
        if teacher_text is None:
            # The names have a prefix here too: transformers 4 needs it, 5 reads both.
            _write_model(folder, type(vision_model), copy.deepcopy(tower.config), vision, dtype)
        else:
            model_class, config = _joined(tower.config, teacher_text)
            processor_class = processor_class_to_name(checkpoint, teacher_text)
            _write_text_part(folder, config, teacher_text, processor_class)
            tensors = vision | _mapped_text_tower(teacher_text, map_ED)
            tensors |= _constants(logit_scale, logit_bias)
            _write_model(folder, model_class, config, tensors, dtype)
        write_image_processor(folder, checkpoint, processor_class_to_name(checkpoint, teacher_text))
        _write_extra(folder, extra, files)
        _write_card(folder, card, teacher_text, checkpoint.model_type)


def write_settings(config: Any, checkpoint: Checkpoint, folder: Path) -> None:
    """Write config.json, the tokenizer and the image processor of a model of two towers, no weights.

    Args:
        config: that of the model; not changed.
        checkpoint: what the model was loaded from.
        folder: an existing folder.

    Raises:
        CheckpointError: the tokenizer files are missing or damaged.
    """
    config = copy.deepcopy(config)
    processor_class = processor_class_to_name(checkpoint, checkpoint)
    _write_text_part(folder, config, checkpoint, processor_class)
    config.save_pretrained(folder)
    write_image_processor(folder, checkpoint, processor_class)


def _check_map(map_ED: "NDArray[Any] | None", E: int, D: int) -> None:
    if map_ED is None and E != D:
        raise ValueError(f"teacher of width {E} and student of width {D}: a map is needed")
    if map_ED is not None and map_ED.shape != (E, D):
        raise ValueError(f"the map must be of shape ({E}, {D}), got {map_ED.shape}")


def _joined(vision_config: Any, teacher: Checkpoint) -> tuple[Any, Any]:
    """Return class and config of a model with the student's image tower and the teacher's text tower."""
    from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

    is_naflex = vision_config.model_type == "siglip2_vision_model"
    config_class: Any = Siglip2Config if is_naflex else SiglipConfig
    text = {**read_towers(teacher.folder).text, "projection_size": vision_config.hidden_size}
    config = config_class(text_config=text, vision_config=vision_config.to_dict())
    return Siglip2Model if is_naflex else SiglipModel, config


def _mapped_text_tower(teacher: Checkpoint, map_ED: "NDArray[Any] | None") -> "_Tensors":
    """Return the teacher's text tower in float32, its head mapped; reads no other weights."""
    import torch
    from safetensors import safe_open

    tensors: _Tensors = {}
    for path in weight_files(teacher.folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dict
                if name.startswith("text_model."):
                    tensors[name] = file.get_tensor(name).float()
    if map_ED is not None:
        map_DE = torch.from_numpy(map_ED).double().T
        for name in ("text_model.head.weight", "text_model.head.bias"):
            if name not in tensors:
                raise CheckpointError(f"{teacher.folder} holds no {name} among its weights")
            tensors[name] = (map_DE @ tensors[name].double()).float()
    return tensors


def _constants(logit_scale: float, logit_bias: float) -> "_Tensors":
    import torch

    return {
        "logit_scale": torch.tensor([logit_scale]),
        "logit_bias": torch.tensor([logit_bias]),
    }


def _write_text_part(
    folder: Path, config: Any, checkpoint: Checkpoint, processor_class: str
) -> None:
    """Write the tokenizer and set its special ids in the config; SigLIP 2's are not the defaults."""
    for name, value in write_tokenizer(checkpoint, folder, processor_class=processor_class).items():
        setattr(config.text_config, name, value)


def _write_model(
    folder: Path, model_class: Any, config: Any, tensors: "_Tensors", dtype: WeightsDtype
) -> None:
    """Write config.json and model.safetensors.

    Raises:
        CheckpointError: names or shapes of the tensors differ from the model's.
    """
    import torch
    from safetensors.torch import save_file

    _check_tensors(model_class, config, tensors)
    config.architectures = [model_class.__name__]
    config.dtype = getattr(torch, dtype)
    config.save_pretrained(folder)
    stored = {
        name: tensor.detach()
        .to("cpu", torch.float32 if name.startswith("logit_") else config.dtype)
        .contiguous()
        for name, tensor in tensors.items()
    }
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def _check_tensors(model_class: Any, config: Any, tensors: "_Tensors") -> None:
    import torch

    with torch.device("meta"):
        expected = model_class(config).state_dict()
    prefix = "" if "logit_scale" in expected else "vision_model."
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
    folder: Path, card: ModelCard, text: Checkpoint | None, model_type: ModelType
) -> None:
    """Write the files of sentence-transformers, then README.md, which describes their use.

    ``text`` is the checkpoint of the text tower; None for an image tower alone.
    """
    programs = None if text is None else try_programs(text, folder, model_type=model_type)
    has_sentence_transformers = programs is None or programs.has_sentence_transformers
    if has_sentence_transformers:
        write_sentence_transformers(folder, text)
    rendered = render_card(
        card,
        tokenizer_class=programs.tokenizer_class if programs else None,
        max_text_tokens=text.max_text_tokens if text else 0,
        has_pipeline=programs is not None and programs.has_pipeline,
        has_sentence_transformers=has_sentence_transformers,
    )
    (folder / "README.md").write_text(rendered, encoding="utf-8")
