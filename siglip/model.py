"""The model: loading it whole or not at all, and its forward passes.

Shape letters in this file:
    B = batch, H, W = pixels, C = 3 colours, N = patches, P = values of a patch, L = text tokens,
    D = embedding width.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from ..errors import TeacherError, first_line
from .checkpoint import Checkpoint
from .image import NaflexRecipe, SquashRecipe
from .positions import KeptPositions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Siglip2Model, SiglipModel


def load_model(
    checkpoint: Checkpoint, *, device: str, compute_dtype: str
) -> "SiglipModel | Siglip2Model":
    """Return the model in eval mode on the device, attention by SDPA, no gradients.

    Parameters stay as they are stored (a bfloat16 SO400M takes 2.3 GB, in float32 it would take
    4.5), except that float32 computes on float32 parameters and the two half dtypes do not mix.

    Raises:
        TeacherError: weights are missing, unexpected, or of another shape than config.json says.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import Siglip2Model, SiglipModel

    model_class: Any = Siglip2Model if checkpoint.model_type == "siglip2" else SiglipModel
    is_kept = checkpoint.stored_dtype == "float32" and compute_dtype != "float32"
    with _quiet_transformers():
        try:
            model, info = cast(
                "tuple[Any, dict[str, Any]]",
                model_class.from_pretrained(
                    checkpoint.folder,
                    dtype=torch.float32 if is_kept else getattr(torch, compute_dtype),
                    attn_implementation="sdpa",
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are refused below, by name
                ),
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise TeacherError(f"{checkpoint.folder} does not load: {first_line(error)}") from error
    for fault in ("missing", "mismatched", "unexpected"):
        names = sorted(key if isinstance(key, str) else key[0] for key in info[f"{fault}_keys"])
        if names:  # transformers would fill them with random numbers and go on
            raise TeacherError(
                f"{checkpoint.folder} has {len(names)} {fault} weights: {', '.join(names[:3])}"
                f"{', ...' if len(names) > 3 else ''}; fetch the checkpoint again, or take "
                "config.json and weights from one checkpoint"
            )
    model = model.to(device).eval().requires_grad_(False)
    if checkpoint.model_type == "siglip2":
        embeddings = model.vision_model.embeddings
        resize = embeddings.resize_positional_embeddings
        embeddings.resize_positional_embeddings = KeptPositions(resize)
    return model


def embed_image_pixels(
    model: "SiglipModel | Siglip2Model",
    checkpoint: Checkpoint,
    pixels_BHWC: "Tensor",
    *,
    compute_dtype: str,
) -> "Tensor":
    """Return (B, D) float32 unit rows on the device of the pixels.

    Args:
        model: from load_model.
        checkpoint: the one the model was loaded from.
        pixels_BHWC: uint8 RGB of the checkpoint's size, on the model's device.
        compute_dtype: dtype of the forward pass; pixels are normalised in float32 all the same.
    """
    import torch

    recipe = checkpoint.image
    if not isinstance(recipe, SquashRecipe):
        raise ValueError(f"{checkpoint.given} takes patches: embed_image_patches")
    H, W = recipe.size
    if pixels_BHWC.shape[1:] != (H, W, 3) or pixels_BHWC.dtype != torch.uint8:
        raise ValueError(
            f"pixels must be uint8 of shape (B, {H}, {W}, 3), "
            f"got {pixels_BHWC.dtype} {tuple(pixels_BHWC.shape)}"
        )
    tower: Any = model  # its types are partly unknown
    with torch.inference_mode():
        x_BHWC = _normalised(pixels_BHWC, checkpoint)
        with _autocast(pixels_BHWC.device.type, compute_dtype):
            pooled_BD = tower.get_image_features(x_BHWC.permute(0, 3, 1, 2)).pooler_output
        return _unit_rows(pooled_BD)


def embed_image_patches(
    model: "SiglipModel | Siglip2Model",
    checkpoint: Checkpoint,
    patches_BNP: "Tensor",
    grids: Sequence[tuple[int, int]],
    mask_BN: "Tensor | None",
    *,
    compute_dtype: str,
) -> "Tensor":
    """Return (B, D) float32 unit rows on the device of the patches; never waits for the device.

    Args:
        model: from load_model.
        checkpoint: the NaFlex one the model was loaded from.
        patches_BNP: uint8 RGB patches on the model's device; N need not be max_num_patches.
        grids: B times (rows, columns) of patches.
        mask_BN: bool on the same device, False after the last patch of each image; None where each
            has N patches: nothing is masked then.
        compute_dtype: dtype of the forward pass; pixels are normalised in float32 all the same.
    """
    import torch

    recipe = checkpoint.image
    if not isinstance(recipe, NaflexRecipe):
        raise ValueError(f"{checkpoint.given} takes whole pictures: embed_image_pixels")
    B, N, P = (len(grids), *patches_BNP.shape[1:])
    if patches_BNP.shape != (B, N, recipe.view_shape[1]) or patches_BNP.dtype != torch.uint8:
        raise ValueError(
            f"patches must be uint8 of shape ({B}, N, {recipe.view_shape[1]}), "
            f"got {patches_BNP.dtype} {tuple(patches_BNP.shape)}"
        )
    if mask_BN is None and any(height * width != N for height, width in grids):
        raise ValueError(f"grids of other than {N} patches need a mask, got {grids}")
    tower: Any = model  # its types are partly unknown
    with torch.inference_mode():
        x_BNP = _normalised(patches_BNP.view(B, N, P // 3, 3), checkpoint).view(B, N, P)
        # Of four dimensions a mask is taken as it is; of two, transformers looks whether it masks
        # anything, which waits for the device.
        mask_B11N = None if mask_BN is None else mask_BN[:, None, None, :]
        with _autocast(patches_BNP.device.type, compute_dtype):
            pooled_BD = tower.get_image_features(
                pixel_values=x_BNP,
                pixel_attention_mask=mask_B11N,
                spatial_shapes=torch.tensor(grids),
            ).pooler_output
        return _unit_rows(pooled_BD)


def embed_token_ids(
    model: "SiglipModel | Siglip2Model", ids_BL: "Tensor", *, compute_dtype: str
) -> "Tensor":
    """Return (B, D) float32 unit rows; ids from TextTokenizer, on the model's device.

    There is no attention mask, on purpose: the tower was trained without, padding included.
    """
    import torch

    tower: Any = model  # its types are partly unknown
    L = tower.config.text_config.max_position_embeddings
    if ids_BL.ndim != 2 or ids_BL.shape[1] != L:  # a shorter one runs, and pools the wrong position
        raise ValueError(f"token ids must be of shape (B, {L}), got {tuple(ids_BL.shape)}")
    with torch.inference_mode(), _autocast(ids_BL.device.type, compute_dtype):
        pooled_BD = tower.get_text_features(input_ids=ids_BL).pooler_output
        return _unit_rows(pooled_BD)


def _normalised(pixels_C: "Tensor", checkpoint: Checkpoint) -> "Tensor":
    """Return uint8 pixels, colours last, rescaled and normalised in float32."""
    mean_C, std_C = (
        _on_device(values, pixels_C.device)
        for values in (checkpoint.image_mean, checkpoint.image_std)
    )
    return (pixels_C.float() * checkpoint.rescale_factor - mean_C) / std_C


def _on_device(values: Sequence[float], device: Any) -> Any:
    """Return a value a channel; one number where all are equal, which needs no copy to the device:
    a copy would wait there for the batch before."""
    import torch

    return values[0] if len(set(values)) == 1 else torch.tensor(values, device=device)


def _unit_rows(pooled_BD: "Tensor") -> "Tensor":
    import torch

    return torch.nn.functional.normalize(pooled_BD.float(), dim=-1)


def _autocast(device_type: str, compute_dtype: str) -> Any:
    import torch

    if compute_dtype == "float32":
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype=getattr(torch, compute_dtype))


@contextmanager
def _quiet_transformers() -> Generator[None]:
    """Silence transformers' progress bars and its warnings about special ids, which are wrong in
    the published configs and used by nobody; errors still come through."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
