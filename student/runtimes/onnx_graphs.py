"""Graphs of a student for onnxruntime: one a tower, and one of both towers with the logits.

Shape letters in this file:
    B = batch, C = 3 colours, H, W = pixels, N = patches, P = values of a patch, L = text tokens,
    D = embedding width, R, S = rows and columns of the position embeddings of a NaFlex checkpoint.
"""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.compose import add_prefix_graph
from torch import Tensor, nn

from ...siglip import (
    Checkpoint,
    NaflexRecipe,
    TextTokenizer,
    text_tower,
    unit_rows,
    vision_tower,
)
from .onnx_student import TEACHER_EMBEDS

OPSET = 20
"""Operator set of the graphs; onnxruntime reads it from 1.17 on, onnxruntime-web too."""

POOLED = "pooler_output"
"""Output of each tower: (B, D) float32, not normalised."""

EMBEDS = {"text": "text_embeds", "image": "image_embeds"}
"""Output of each tower: (B, D) float32 of norm 1."""

_LARGEST_FILE = 2_000_000_000
"""Bytes of weights in one file; protobuf ends at 2 GiB. Larger weights get a file of their own."""


def text_graph(
    model: Any,
    checkpoint: Checkpoint,
    dtype: Literal["float32", "float16"],
    map_ED: NDArray[np.float32] | None = None,
) -> ModelProto:
    """Return the text tower: input_ids (B, L) int64 -> pooler_output and text_embeds, (B, D) float32.

    L is fixed: the tower pools its last position, so a shorter text would get a wrong embedding. There a
    text has the padding or eos, and any other id becomes eos: transformers.js cuts off the eos of long texts.

    Args:
        model: from load_model, on the CPU; its text tower is converted to ``dtype``.
        checkpoint: the one it was loaded from.
        dtype: dtype of weights and activations.
        map_ED: map to the teacher's space for the output teacher_embeds; None: there is none.
    """
    tower = text_tower(model).to(getattr(torch, dtype))
    ids_BL = torch.ones(2, tower.config.max_position_embeddings, dtype=torch.int64)
    eos, *_, pad = TextTokenizer(checkpoint)([""])[0].tolist()
    names = {"input_ids": {0: "text_batch"}}
    return _traced(_TextTower(tower, eos, pad, map_ED), {"input_ids": ids_BL}, names, "text")


def image_graph(
    model: Any,
    checkpoint: Checkpoint,
    dtype: Literal["float32", "float16"],
    map_ED: NDArray[np.float32] | None = None,
) -> ModelProto:
    """Return the image tower: pixels -> pooler_output and image_embeds, (B, D) float32.

    Inputs of a checkpoint of fixed resolution: pixel_values (B, C, H, W) float32. Of a NaFlex one:
    pixel_values (B, N, P) float32, pixel_attention_mask (B, N) int32 and spatial_shapes (B, 2) int64, as its
    processor gives them. Pixels are normalised.

    Args:
        model: from load_model, on the CPU; its image tower is converted to ``dtype``.
        checkpoint: the one it was loaded from.
        dtype: dtype of weights and activations.
        map_ED: as of text_graph.
    """
    tower = vision_tower(model).to(getattr(torch, dtype))
    recipe = checkpoint.image
    if not isinstance(recipe, NaflexRecipe):
        inputs = {"pixel_values": torch.zeros(2, 3, *recipe.size)}
        sizes = {"pixel_values": {0: "image_batch"}}
        return _traced(_ImageTower(tower, map_ED), inputs, sizes, "image")
    N, P = recipe.view_shape
    inputs = {
        "pixel_values": torch.zeros(2, N, P),
        "pixel_attention_mask": torch.ones(2, N, dtype=torch.int32),
        "spatial_shapes": torch.tensor([[1, N], [2, N // 2]]),
    }
    patches = {0: "image_batch", 1: "num_patches"}
    shapes = {
        "pixel_values": patches,
        "pixel_attention_mask": patches,
        "spatial_shapes": {0: "image_batch"},
    }
    return _traced(_NaflexTower(tower, map_ED), inputs, shapes, "image")


def joint_graph(
    image: ModelProto, text: ModelProto, *, logit_scale: float, logit_bias: float
) -> ModelProto:
    """Return both towers in one graph, with logits: exp(logit_scale) * cosine + logit_bias.

    Its outputs are logits_per_image (images, texts), logits_per_text, image_embeds and text_embeds, float32.

    Args:
        image: from image_graph, or a quantised one; not changed.
        text: from text_graph, or a quantised one; not changed.
        logit_scale: a logarithm, as stored in checkpoints.
        logit_bias: as stored in checkpoints.
    """
    joint = ModelProto()
    joint.CopyFrom(image)
    graph = joint.graph
    _prepare(graph, "vision_")
    other = onnx.GraphProto()
    other.CopyFrom(text.graph)
    _prepare(other, "text_")
    for part in ("node", "initializer", "input", "output"):
        getattr(graph, part).extend(getattr(other, part))
    del graph.value_info[:]  # a quantised tower names unknown sizes like the other's
    domains = {opset.domain for opset in joint.opset_import}
    joint.opset_import.extend(o for o in text.opset_import if o.domain not in domains)
    constants = {"logit_scale": np.exp(np.float64(logit_scale)), "logit_bias": logit_bias}
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    graph.node.extend(
        [
            helper.make_node("Transpose", [EMBEDS["image"]], ["images_DB"], perm=[1, 0]),
            helper.make_node("MatMul", [EMBEDS["text"], "images_DB"], ["cosines"]),
            helper.make_node("Mul", ["cosines", "logit_scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "logit_bias"], ["logits_per_text"]),
            helper.make_node("Transpose", ["logits_per_text"], ["logits_per_image"], perm=[1, 0]),
        ]
    )
    sides = ("image_batch", "text_batch")
    for name, shape in (("logits_per_text", sides[::-1]), ("logits_per_image", sides)):
        graph.output.insert(0, helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return joint


def save_graph(graph: ModelProto, path: Path) -> bool:
    """Write a graph; return whether its weights are in a second file, ``path`` with ``_data`` added."""
    num_bytes = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    is_large = num_bytes > _LARGEST_FILE
    if is_large:
        location = path.name + "_data"
        onnx.save(graph, path, save_as_external_data=True, location=location)
    else:
        onnx.save(graph, path)
    return is_large


def _prepare(graph: Any, prefix: str) -> None:
    """Give every inner name a prefix, and leave out the outputs that both towers have."""
    for value in [value for value in graph.output if value.name in (POOLED, TEACHER_EMBEDS)]:
        graph.output.remove(value)
    add_prefix_graph(graph, prefix, rename_inputs=False, rename_outputs=False, inplace=True)


class _Tower(nn.Module):
    def __init__(self, tower: Any, map_ED: NDArray[np.float32] | None) -> None:
        super().__init__()
        self.tower = tower
        self.map_DE = None if map_ED is None else torch.from_numpy(map_ED.T.copy())

    def outputs(self, found: Any) -> tuple[Tensor, ...]:
        pooled_BD = found.pooler_output.float()
        if self.map_DE is None:
            return pooled_BD, unit_rows(pooled_BD)
        return pooled_BD, unit_rows(pooled_BD), unit_rows(pooled_BD @ self.map_DE)


class _TextTower(_Tower):
    def __init__(
        self, tower: nn.Module, eos: int, pad: int, map_ED: NDArray[np.float32] | None
    ) -> None:
        super().__init__(tower, map_ED)
        self.eos, self.pad = eos, pad

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        last_B1 = torch.where(input_ids[:, -1:] == self.pad, self.pad, self.eos)
        ids_BL = torch.cat([input_ids[:, :-1], last_B1], dim=1)
        return self.outputs(self.tower(input_ids=ids_BL))


class _ImageTower(_Tower):
    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return self.outputs(self.tower(pixel_values=pixel_values.to(self.tower.dtype)))


class _NaflexTower(_Tower):
    def __init__(self, tower: Any, map_ED: NDArray[np.float32] | None) -> None:
        super().__init__(tower, map_ED)
        tower.embeddings.resize_positional_embeddings = resized_positions

    def forward(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor
    ) -> tuple[Tensor, ...]:
        return self.outputs(
            self.tower(
                pixel_values=pixel_values.to(self.tower.dtype),
                pixel_attention_mask=pixel_attention_mask[:, None, None, :] != 0,
                spatial_shapes=spatial_shapes,
            )
        )


def resized_positions(
    positional_embeddings: Tensor, spatial_shapes: Tensor, max_length: int
) -> Tensor:
    """Return (B, N, D) position embeddings resized to each image's grid, without a loop over images.

    ``torch.nn.functional.interpolate`` of transformers cannot be traced with sizes from a tensor.
    Antialiased bilinear resizing is linear in both directions: each patch's row and column of the grid give
    weights of the stored rows and columns. Rows after the last patch, which the mask leaves out, differ from
    transformers'.

    Args:
        positional_embeddings: (R, S, D).
        spatial_shapes: (B, 2) int64, rows and columns of patches.
        max_length: N.
    """
    R, S, _ = positional_embeddings.shape
    patch_N = torch.arange(max_length, device=spatial_shapes.device)
    rows_B1, columns_B1 = spatial_shapes[:, :1], spatial_shapes[:, 1:]
    of_rows_BNR = _weights(patch_N // columns_B1, rows_B1, R)
    of_columns_BNS = _weights(patch_N % columns_B1, columns_B1, S)
    weights_BNP = (of_rows_BNR[..., :, None] * of_columns_BNS[..., None, :]).flatten(2)
    found_BND = weights_BNP @ positional_embeddings.flatten(0, 1).float()
    return found_BND.to(positional_embeddings.dtype)


def _weights(index_BN: Tensor, size_B1: Tensor, num_stored: int) -> Tensor:
    """Return (B, N, num_stored) weights of a triangle filter, as wide as one step of the coarser grid."""
    step_B1 = num_stored / size_B1.float()
    centre_BN = (index_BN.float() + 0.5) * step_B1
    stored = torch.arange(num_stored, device=index_BN.device) + 0.5
    distance = (stored - centre_BN[..., None]) / step_B1.clamp(min=1)[..., None]
    weights = (1 - distance.abs()).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)  # 0 after the last patch


def _traced(
    tower: _Tower, inputs: dict[str, Tensor], dynamic: dict[str, Any], kind: str
) -> ModelProto:
    with quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            tower.eval(),
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[
                POOLED,
                EMBEDS[kind],
                *([] if tower.map_DE is None else [TEACHER_EMBEDS]),
            ],
            dynamic_shapes=dynamic,
            verbose=False,
        )
        return program.model_proto


@contextmanager
def quiet() -> Generator[None]:
    """Silence what exporters say about themselves: missing torchvision, deprecated calls, advice."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
