"""A student in the files of open_clip: OUT/open_clip_config.json, open_clip_model.safetensors, tokenizer.

Shape letters in this file: B = batch, C = 3 colours, H, W = pixels, D = embedding width, M = texts.
"""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...errors import ExportError, SettingError
from ...siglip import Checkpoint, NaflexRecipe, load_model
from ...siglip.files import save_weights, write_json
from ...siglip.image import RESAMPLE_NAMES
from .gate import LIMITS, Parity, check_parity
from .held_out import HeldOut, student_outputs

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"

_TIMM_SIZES = {
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1152, 27, 16): "so400m",
    (1536, 40, 16): "giantopt",
}
"""Part of timm's name of an image tower, by width, layers and heads; open_clip builds it by name."""

_IMAGE_LAYER = {
    "qkv": "attn.qkv.",
    "self_attn.out_proj": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TEXT_LAYER = {
    "qkv": "attn.in_proj_",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
"""Names in a layer of timm's image tower, and of open_clip's text tower; ``qkv`` lacks its last word."""


def check_open_clip_installed() -> None:
    """Check that open_clip can be imported.

    Raises:
        SettingError: it, or a package that it needs, cannot.
    """
    try:
        importlib.import_module("open_clip")
    except Exception as error:  # torchvision raises RuntimeError beside another torch
        raise SettingError(
            f"an export to open_clip needs the package open_clip, which cannot be imported here ({error}): "
            "pip install 'siglip2-cache[open-clip]'"
        ) from error


def timm_name(checkpoint: Checkpoint, vision: Any) -> str:
    """Return timm's name of an image tower, such as ``vit_base_patch16_siglip_224``.

    Args:
        checkpoint: the student, of fixed resolution.
        vision: its vision_config.

    Raises:
        SettingError: timm has no such image tower, so open_clip cannot build it.
    """
    timm: Any = importlib.import_module("timm")
    sizes = (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads)
    is_fixed = not isinstance(checkpoint.image, NaflexRecipe)
    size = vision.image_size if is_fixed else 0
    name = f"vit_{_TIMM_SIZES.get(sizes)}_patch{vision.patch_size}_siglip_{size}"
    if not (is_fixed and timm.is_model(name)):
        raise SettingError(
            f"{checkpoint.given} has an image tower that open_clip cannot build: {sizes[1]} layers of width "
            f"{sizes[0]} with {sizes[2]} heads, {checkpoint.model_type}; it takes those of the published "
            "SigLIP 2 checkpoints of fixed resolution, whole. Use --to onnx"
        )
    return name


def open_clip_config(checkpoint: Checkpoint, config: Any) -> dict[str, Any]:
    """Return the contents of open_clip_config.json.

    Args:
        checkpoint: the student.
        config: its SiglipConfig.

    Raises:
        SettingError: open_clip has no such image tower.
    """
    text, recipe = config.text_config, checkpoint.image
    name = timm_name(checkpoint, config.vision_config)
    assert not isinstance(recipe, NaflexRecipe)
    return {
        "model_cfg": {
            "embed_dim": checkpoint.embed_dim,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {
                "image_size": recipe.size[0],
                "timm_model_name": name,
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {
                "context_length": checkpoint.max_text_tokens,
                "vocab_size": checkpoint.vocab_size,
                "hf_tokenizer_name": ".",  # any name: open_clip takes this folder
                # tokenizer.json lowercases. open_clip has no setting that cleans less.
                "tokenizer_kwargs": {"clean": "whitespace"},
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                # open_clip rounds the product with the width down
                "mlp_ratio": (text.intermediate_size + 0.5) / text.hidden_size,
                "no_causal_mask": True,
                "proj_bias": True,
                "pool_type": "last",
                "norm_kwargs": {"eps": text.layer_norm_eps},
                "act_kwargs": {"approximate": "tanh"},
            },
        },
        "preprocess_cfg": {
            "mean": list(checkpoint.image_mean),
            "std": list(checkpoint.image_std),
            "interpolation": RESAMPLE_NAMES[recipe.resample],
            "resize_mode": "squash",
        },
    }


def open_clip_weights(model: Any) -> dict[str, Tensor]:
    """Return the weights of a SiglipModel by the names of open_clip's CustomTextCLIP and timm's tower."""
    source: dict[str, Tensor] = model.state_dict()
    found: dict[str, Tensor] = {}

    def move(old: str, new: str) -> None:
        for end in ("weight", "bias"):
            found[f"{new}.{end}"] = source.pop(f"{old}.{end}")

    def move_layer(old: str, new: str, names: dict[str, str]) -> None:
        """Join the projections to queries, keys and values, in this order, and move the rest by name."""
        for end in ("weight", "bias"):
            parts = [source.pop(f"{old}.self_attn.{part}_proj.{end}") for part in "qkv"]
            found[f"{new}.{names['qkv']}{end}"] = torch.cat(parts)
        for name, named in names.items():
            if name != "qkv":
                move(f"{old}.{name}", f"{new}.{named}")

    for name in ("logit_scale", "logit_bias"):
        found[name] = source.pop(name).reshape(())

    old, new = "vision_model", "visual.trunk"
    move(f"{old}.embeddings.patch_embedding", f"{new}.patch_embed.proj")
    positions_ND = source.pop(f"{old}.embeddings.position_embedding.weight")
    found[f"{new}.pos_embed"] = positions_ND[None]
    for i in range(model.config.vision_config.num_hidden_layers):
        move_layer(f"{old}.encoder.layers.{i}", f"{new}.blocks.{i}", _IMAGE_LAYER)
    move(f"{old}.post_layernorm", f"{new}.norm")
    found[f"{new}.attn_pool.latent"] = source.pop(f"{old}.head.probe")
    for end in ("weight", "bias"):
        qkv = source.pop(f"{old}.head.attention.in_proj_{end}")
        width = len(qkv) // 3
        found[f"{new}.attn_pool.q.{end}"] = qkv[:width]
        found[f"{new}.attn_pool.kv.{end}"] = qkv[width:]
    move(f"{old}.head.attention.out_proj", f"{new}.attn_pool.proj")
    move(f"{old}.head.layernorm", f"{new}.attn_pool.norm")
    for part in ("mlp.fc1", "mlp.fc2"):
        move(f"{old}.head.{part}", f"{new}.attn_pool.{part}")

    old, new = "text_model", "text"
    found[f"{new}.token_embedding.weight"] = source.pop(f"{old}.embeddings.token_embedding.weight")
    found[f"{new}.positional_embedding"] = source.pop(f"{old}.embeddings.position_embedding.weight")
    for i in range(model.config.text_config.num_hidden_layers):
        move_layer(f"{old}.encoder.layers.{i}", f"{new}.transformer.resblocks.{i}", _TEXT_LAYER)
    move(f"{old}.final_layer_norm", f"{new}.ln_final")
    move(f"{old}.head", f"{new}.text_projection")
    assert not source, f"weights without a place: {sorted(source)}"
    return {name: tensor.contiguous() for name, tensor in found.items()}


class OpenClipStudent:
    """Runs the files in open_clip, on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Load model, image transform and tokenizer as a user does."""
        open_clip: Any = importlib.import_module("open_clip")
        tokenizers: Any = importlib.import_module("open_clip.tokenizer")
        name = f"local-dir:{folder}"
        self._model, _, self._prepare = open_clip.create_model_and_transforms(name)
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)
        self._clean = tokenizers.get_clean_fn("whitespace")
        scale, bias = self._model.logit_scale.detach().exp(), self._model.logit_bias.detach()
        self.logit: tuple[float, float] | None = (float(scale), float(bias))

    def clean(self, text: str) -> str:
        """Return what open_clip makes of a text before its tokenizer."""
        return self._clean(text)

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return self._tokenizer(texts).tolist()

    def embed_images(
        self, pixels_B: NDArray[np.uint8], grids_B2: NDArray[np.int64] | None
    ) -> list[NDArray[np.float32]]:
        """Return (B, D) unit rows of (B, H, W, C) pixels."""
        with torch.inference_mode():
            return [self._model.encode_image(self._images(pixels_B), normalize=True).numpy()]

    def embed_texts(self, texts: list[str]) -> list[NDArray[np.float32]]:
        """Return (B, D) unit rows."""
        with torch.inference_mode():
            return [self._model.encode_text(self._tokenizer(texts), normalize=True).numpy()]

    def logits(
        self, pixels_B: NDArray[np.uint8], grids_B2: NDArray[np.int64] | None, texts: list[str]
    ) -> NDArray[np.float32]:
        """Return (B, M) logits of each image with each text."""
        with torch.inference_mode():
            per_image, _ = self._model.get_logits(self._images(pixels_B), self._tokenizer(texts))
            return per_image.numpy()

    def _images(self, pixels_B: NDArray[np.uint8]) -> Tensor:
        return torch.stack([self._prepare(Image.fromarray(pixels)) for pixels in pixels_B])


def write_checked_open_clip(
    checkpoint: Checkpoint, folder: Path, held_out: HeldOut
) -> tuple[Parity, int]:
    """Write config and weights, load them with open_clip, and compare with the student.

    open_clip repairs wrongly decoded text, replaces HTML entities and joins white space, which its files
    cannot change. The student is given texts that are cleaned so.

    Args:
        checkpoint: the student.
        folder: has the tokenizer and the image settings.
        held_out: pictures and captions of the check.

    Returns:
        How open_clip differs from the student, and how many of the captions its cleaning changes.

    Raises:
        SettingError: open_clip has no such image tower.
        ExportError: open_clip does not load the files, or differs from the student.
    """
    model = load_model(checkpoint, device="cpu", compute_dtype="float32")
    write_json(folder / CONFIG, open_clip_config(checkpoint, model.config))
    save_weights(folder / WEIGHTS, open_clip_weights(model))
    try:
        exported = OpenClipStudent(folder)
    except Exception as error:
        raise ExportError(f"open_clip cannot load the files written for it: {error}") from error
    texts = [exported.clean(text) for text in held_out.texts]
    num_changed = sum(a != b for a, b in zip(texts, held_out.texts, strict=True))
    cleaned = replace(held_out, texts=texts)
    student = student_outputs(model, checkpoint, cleaned)
    parity = check_parity(
        exported, student, checkpoint, cleaned, limits=LIMITS["open-clip"], what="open_clip"
    )
    return parity, num_changed
