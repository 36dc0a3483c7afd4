"""Forward passes of a model.

Shape letters in this file:
    B = batch, H, W = pixels, C = 3 colours, N = patches, P = values of a patch, L = text tokens,
    D = embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .checkpoint import Checkpoint
from .device import to_device
from .image import NaflexRecipe, SquashRecipe
from .patch_cells import Grid, PatchPooling

Towers = Literal["both", "image", "text"]
"""Towers of a model, or those of a student that are trained."""

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.models.siglip import SiglipModel
    from transformers.models.siglip2 import Siglip2Model


def vision_tower(model: Any) -> Any:
    """Return the image tower of a model with both towers, or the model itself."""
    return getattr(model, "vision_model", model)


def text_tower(model: Any) -> Any:
    """Return the text tower of a model with both towers, or the model itself."""
    return getattr(model, "text_model", model)


def towers_of(model: Any) -> "Towers":
    """Return which towers a model of transformers has."""
    name: str = model.config.model_type
    if name.endswith("_vision_model"):
        return "image"
    return "text" if name.endswith("_text_model") else "both"


def embed_image_pixels(
    model: "SiglipModel | Siglip2Model",
    checkpoint: Checkpoint,
    pixels_BHWC: "Tensor",
    *,
    compute_dtype: str,
    patches: PatchPooling | None = None,
) -> "Tensor":
    """Return (B, D) float32 unit rows on the device of the pixels.

    Args:
        model: from load_model.
        checkpoint: the one the model was loaded from.
        pixels_BHWC: uint8 RGB of the checkpoint's size, on the model's device.
        compute_dtype: dtype of the forward pass; pixels are always normalised in float32.
        patches: adds the values of its cells to each row; None: adds nothing.
    """
    import torch

    with torch.inference_mode(), autocast(pixels_BHWC.device.type, compute_dtype):
        encoded = encode_images(vision_tower(model), checkpoint, pixels_BHWC, None)
        return _rows(encoded, patches)


def embed_image_patches(
    model: "SiglipModel | Siglip2Model",
    checkpoint: Checkpoint,
    patches_BNP: "Tensor",
    grids: Sequence[tuple[int, int]],
    mask_BN: "Tensor | None",
    *,
    compute_dtype: str,
    patches: PatchPooling | None = None,
) -> "Tensor":
    """Return (B, D) float32 unit rows on the device of the patches, without waiting for the device.

    Args:
        model: from load_model.
        checkpoint: the NaFlex one the model was loaded from.
        patches_BNP: uint8 RGB patches on the model's device; N need not be max_num_patches.
        grids: (rows, columns) of patches of each image.
        mask_BN: bool on the same device, False after the last patch of each image; None if every image
            has N patches.
        compute_dtype: dtype of the forward pass; pixels are always normalised in float32.
        patches: adds the values of its cells to each row; None: adds nothing.
    """
    import torch

    with torch.inference_mode(), autocast(patches_BNP.device.type, compute_dtype):
        tower = vision_tower(model)
        output = _run_patches(tower, checkpoint, patches_BNP, grids, mask_BN)
        return _rows(EncodedImages(output.pooler_output, output.last_hidden_state, grids), patches)


def embed_hidden_states(
    model: "SiglipModel | Siglip2Model", states_CW: "Tensor", *, compute_dtype: str
) -> "Tensor":
    """Return (C, D) float32 unit rows of hidden states: the pooling head gets each one alone."""
    import torch

    with torch.inference_mode(), autocast(states_CW.device.type, compute_dtype):
        return unit_rows(vision_tower(model).head(states_CW[:, None].to(model.dtype)))


def embed_token_ids(
    model: "SiglipModel | Siglip2Model", ids_BL: "Tensor", *, compute_dtype: str
) -> "Tensor":
    """Return (B, D) float32 unit rows; ids from TextTokenizer, on the model's device.

    There is no attention mask, on purpose: the tower was trained with padding and without a mask.
    """
    import torch

    tower = text_tower(model)
    with torch.inference_mode(), autocast(ids_BL.device.type, compute_dtype):
        return unit_rows(pool_token_ids(tower, ids_BL))


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """The output of an image tower; gradients flow."""

    pooled_BD: "Tensor"
    """The pooled output, not normalised."""

    tokens_BND: "Tensor"
    """The hidden states of the patches that the pooling head gets: after the last layer norm."""

    grids: Sequence[Grid]
    """Rows and columns of patches of each image."""


def _rows(encoded: EncodedImages, patches: PatchPooling | None) -> "Tensor":
    rows_BD = unit_rows(encoded.pooled_BD)
    return (
        rows_BD if patches is None else patches.append(rows_BD, encoded.tokens_BND, encoded.grids)
    )


def _run_pixels(tower: Any, checkpoint: Checkpoint, pixels_BHWC: "Tensor") -> Any:
    """Return the output of an image tower of fixed resolution."""
    import torch

    recipe = checkpoint.image
    if not isinstance(recipe, SquashRecipe):
        raise ValueError(f"{checkpoint.given} takes patches, not whole images")
    H, W = recipe.size
    if pixels_BHWC.shape[1:] != (H, W, 3) or pixels_BHWC.dtype != torch.uint8:
        raise ValueError(
            f"pixels must be uint8 of shape (B, {H}, {W}, 3), "
            f"got {pixels_BHWC.dtype} {tuple(pixels_BHWC.shape)}"
        )
    x_BHWC = _normalised(pixels_BHWC, checkpoint)
    return tower(pixel_values=x_BHWC.permute(0, 3, 1, 2))


def _run_patches(
    tower: Any,
    checkpoint: Checkpoint,
    patches_BNP: "Tensor",
    grids: Sequence[tuple[int, int]],
    mask_BN: "Tensor | None",
) -> Any:
    """Return the output of a NaFlex image tower; ``mask_BN`` is as for embed_image_patches."""
    import torch

    recipe = checkpoint.image
    if not isinstance(recipe, NaflexRecipe):
        raise ValueError(f"{checkpoint.given} takes whole images, not patches")
    B, N, P = (len(grids), *patches_BNP.shape[1:])
    if patches_BNP.shape != (B, N, recipe.view_shape[1]) or patches_BNP.dtype != torch.uint8:
        raise ValueError(
            f"patches must be uint8 of shape ({B}, N, {recipe.view_shape[1]}), "
            f"got {patches_BNP.dtype} {tuple(patches_BNP.shape)}"
        )
    if mask_BN is None and any(height * width != N for height, width in grids):
        raise ValueError(f"grids of other than {N} patches need a mask, got {grids}")
    x_BNP = _normalised(patches_BNP.view(B, N, P // 3, 3), checkpoint).view(B, N, P)
    # transformers uses a mask of four dimensions unchanged; it checks whether one of two dimensions masks
    # anything, which waits for the device.
    mask_B11N = None if mask_BN is None else mask_BN[:, None, None, :]
    return tower(
        pixel_values=x_BNP, pixel_attention_mask=mask_B11N, spatial_shapes=torch.tensor(grids)
    )


def pool_images(
    tower: Any,
    checkpoint: Checkpoint,
    pixels_B: "Tensor",
    grids: Sequence[tuple[int, int]] | None,
) -> "Tensor":
    """Return the (B, D) pooled output of an image tower of either kind, not normalised; see encode_images."""
    return encode_images(tower, checkpoint, pixels_B, grids).pooled_BD


def encode_images(
    tower: Any,
    checkpoint: Checkpoint,
    pixels_B: "Tensor",
    grids: Sequence[tuple[int, int]] | None,
) -> EncodedImages:
    """Return the output of an image tower of either kind; gradients flow.

    Args:
        tower: from vision_tower.
        checkpoint: the checkpoint of the tower.
        pixels_B: uint8 images, or patches with any padding, on the device of the tower; normalised in float32
            under any autocast.
        grids: (rows, columns) of patches of each image; None for a checkpoint of fixed resolution.
    """
    import torch

    if grids is None:
        output = _run_pixels(tower, checkpoint, pixels_B)
        height, width = (n // tower.config.patch_size for n in pixels_B.shape[1:3])
        grids = [(height, width)] * len(pixels_B)
        return EncodedImages(output.pooler_output, output.last_hidden_state, grids)
    num_patches_B = torch.tensor([rows * columns for rows, columns in grids])
    N = int(num_patches_B.max())
    mask_BN = torch.arange(N) < num_patches_B[:, None]
    mask = None if bool(mask_BN.all()) else to_device(mask_BN, pixels_B.device)
    output = _run_patches(tower, checkpoint, pixels_B[:, :N], grids, mask)
    return EncodedImages(output.pooler_output, output.last_hidden_state, grids)


def pool_token_ids(tower: Any, ids_BL: "Tensor") -> "Tensor":
    """Return the (B, D) pooled output of a text tower, not normalised; gradients flow."""
    L = tower.config.max_position_embeddings
    if (
        ids_BL.ndim != 2 or ids_BL.shape[1] != L
    ):  # a shorter one would run and pool the wrong position
        raise ValueError(f"token ids must be of shape (B, {L}), got {tuple(ids_BL.shape)}")
    return tower(input_ids=ids_BL).pooler_output


def _normalised(pixels_C: "Tensor", checkpoint: Checkpoint) -> "Tensor":
    """Return uint8 pixels, with colours in the last dimension, rescaled and normalised in float32."""
    mean_C, std_C = (
        _on_device(values, pixels_C.device)
        for values in (checkpoint.image_mean, checkpoint.image_std)
    )
    return (pixels_C.float() * checkpoint.rescale_factor - mean_C) / std_C


def _on_device(values: Sequence[float], device: Any) -> Any:
    """Return one value for each channel, or a number if all are equal.

    A number needs no copy to the device, which would wait for the previous batch.
    """
    import torch

    return values[0] if len(set(values)) == 1 else torch.tensor(values, device=device)


def unit_rows(pooled_BD: "Tensor") -> "Tensor":
    """Return rows of norm 1, in float64 for float64 rows and in float32 for all others."""
    import torch

    is_double = pooled_BD.dtype == torch.float64
    return torch.nn.functional.normalize(pooled_BD if is_double else pooled_BD.float(), dim=-1)


def autocast(device_type: str, compute_dtype: str) -> Any:
    """Return the context of a forward pass in one of COMPUTE_DTYPES."""
    import torch

    if compute_dtype == "float32":
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype=getattr(torch, compute_dtype))
