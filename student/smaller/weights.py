"""Weights of a smaller student, selected from those of a larger one.

Shape letters in this file: D = width, M = width of the MLP, H = heads, p = height and width of a patch,
L = layers, N = patches.
"""

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    Weights = dict[str, Tensor]

_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_POSITIONS = "vision_model.embeddings.position_embedding.weight"
TOKENS = "text_model.embeddings.token_embedding.weight"
_LAYER = re.compile(r"(?P<tower>\w+)\.encoder\.layers\.(?P<number>\d+)\.(?P<rest>.*)")


def evenly(num_kept: int, num_all: int) -> list[int]:
    """Return positions spread evenly over all, the first and the last among them; 1: the first."""
    return np.linspace(0, num_all - 1, num_kept).round().astype(int).tolist()


def keep_layers(weights: "Weights", tower: str, layers: list[int]) -> "Weights":
    """Return weights with some layers of ``text_model`` or ``vision_model``, numbered anew."""
    new_number = {str(old): new for new, old in enumerate(layers)}
    kept: Weights = {}
    for name, tensor in weights.items():
        found = _LAYER.fullmatch(name)
        if found is None or found["tower"] != tower:
            kept[name] = tensor
        elif found["number"] in new_number:
            kept[f"{tower}.encoder.layers.{new_number[found['number']]}.{found['rest']}"] = tensor
    return kept


def resize_patches(weights: "Weights", patch_size: int) -> "Weights":
    """Return weights for patches of another size, which give nearly the same to a resized patch.

    Source: FlexiViT, arXiv:2212.08013, section 3.4: the pseudo-inverse of resizing.
    """
    import torch
    from torch.nn.functional import interpolate

    kernel = weights[_PATCHES]  # (D, 3, p, p)
    p = kernel.shape[-1]
    basis = torch.eye(p * p, dtype=torch.float64).view(p * p, 1, p, p)
    size = (patch_size, patch_size)
    resized = interpolate(basis, size, mode="bilinear", antialias=True).flatten(1)
    inverse = torch.linalg.pinv(resized)  # (new, old)
    found = kernel.double().flatten(2) @ inverse.T
    return weights | {_PATCHES: found.view(*kernel.shape[:2], *size).to(kernel.dtype)}


def resize_positions(weights: "Weights", grid: int) -> "Weights":
    """Return weights with position embeddings for a square grid of another number of patches."""
    from torch.nn.functional import interpolate

    stored = weights[_POSITIONS]  # (N, D)
    side = int(len(stored) ** 0.5)
    square = stored.float().T.view(1, -1, side, side)
    found = interpolate(square, (grid, grid), mode="bilinear", antialias=True)
    return weights | {_POSITIONS: found[0].flatten(1).T.to(stored.dtype).contiguous()}


def keep_tokens(weights: "Weights", old_ids: NDArray[np.int64]) -> "Weights":
    """Return weights with the token embeddings of some ids, in their order."""
    return weights | {TOKENS: weights[TOKENS][old_ids.tolist()]}


def narrow(
    weights: "Weights", *, width: int, num_heads: dict[str, int], mlp: dict[str, int]
) -> "Weights":
    """Return weights of another width of both towers, spread evenly over those of the larger one.

    Kept are every so many values of the residual stream, whole heads, and values of each MLP.

    Args:
        weights: those of two towers of one width D.
        width: width to keep, a multiple of the width of a head.
        num_heads: heads H of the larger ``text_model`` and ``vision_model``.
        mlp: width M that each tower's MLP is to have.

    Source: weight selection, arXiv:2311.18823, uniform element selection.
    """
    import torch

    D = weights[_POSITIONS].shape[1]
    stream = torch.tensor(evenly(width, D))
    narrowed: Weights = {}
    for name, tensor in weights.items():
        tower = name.split(".", 1)[0]
        if tower not in num_heads:
            narrowed[name] = tensor  # scale and bias of the logits
            continue
        size = D // num_heads[tower]
        heads = torch.tensor(evenly(width // size, num_heads[tower]))
        inner = (heads[:, None] * size + torch.arange(size)).flatten()
        whole = weights[f"{tower}.encoder.layers.0.mlp.fc1.bias"].shape[0]
        kept = {
            "stream": stream,
            "heads": inner,
            "three heads": torch.cat([inner + D * part for part in range(3)]),
            "mlp": torch.tensor(evenly(mlp[tower], whole)),
        }
        for axis, what in _axes(name, tensor.ndim):
            tensor = tensor.index_select(axis, kept[what])
        narrowed[name] = tensor.contiguous()
    return narrowed


def _axes(name: str, ndim: int) -> list[tuple[int, str]]:
    """Return which axes of a weight are of which width."""
    out, into = {
        "q_proj": ("heads", "stream"),
        "k_proj": ("heads", "stream"),
        "v_proj": ("heads", "stream"),
        "in_proj_weight": ("three heads", "stream"),
        "in_proj_bias": ("three heads", ""),
        "out_proj": ("stream", "heads"),
        "fc1": ("mlp", "stream"),
        "fc2": ("stream", "mlp"),
        "patch_embedding": ("stream", ""),
        "token_embedding": ("", "stream"),
        "position_embedding": ("", "stream"),
    }.get(_layer_of(name), ("stream", "stream"))
    if name.endswith("head.probe"):  # (1, 1, D)
        return [(2, "stream")]
    pairs = [(0, out)] if ndim in (1, 4) else [(0, out), (1, into)]
    return [(axis, what) for axis, what in pairs if what]


def _layer_of(name: str) -> str:
    parts = name.split(".")
    return parts[-1] if parts[-1].startswith("in_proj") else parts[-2]
