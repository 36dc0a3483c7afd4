"""SigLIP and SigLIP 2 checkpoints: settings, identity, texts, forward pass.

Everything up to the identity reads plain files, so that a build with nothing to do does not import torch.
The recipe of a checkpoint:

    pixels   RGB, squashed by Pillow to the square of the checkpoint, or for NaFlex resized to a grid of
             patches; rescaled and normalised here
    text     lowercased, tokenized, eos appended, truncated to 64 ids with eos kept, padded on the right
    both     `.pooler_output` of the tower, L2-normalised in float32. The text tower pools its *last
             position*, so padding is part of the function and there is no attention mask.
"""

from .architecture import TEXT_FORMULA, VIEW_FORMULA, Architecture, find_architecture
from .checkpoint import (
    COMPUTE_DTYPES,
    Checkpoint,
    checkpoint_identity,
    logit_scale_and_bias,
    resolve_checkpoint,
    with_max_num_patches,
)
from .compiling import compile_layers, graph_limit_reported, uncompiled
from .config import BOTH
from .device import is_out_of_memory, resolve_compute_dtype, resolve_device, to_device
from .files import file_sha256, files_sha256, weight_files
from .image import (
    RESAMPLE_NAMES,
    TRANSPARENCY,
    ImageRecipe,
    NaflexRecipe,
    SquashRecipe,
    check_max_num_patches,
    shows_on_white,
    view_pixels,
)
from .loading import checkpoint_activations, load_model, load_trainable
from .model import (
    Towers,
    autocast,
    embed_hidden_states,
    embed_image_patches,
    embed_image_pixels,
    embed_token_ids,
    encode_images,
    pool_images,
    pool_token_ids,
    text_tower,
    towers_of,
    unit_rows,
    vision_tower,
)
from .patch_cells import PatchPooling, cell_grid, on_device, pool_tokens
from .published import PUBLISHED
from .text import TextTokenizer
from .text_settings import find_text_cleaning, read_text_settings

__all__ = [
    "BOTH",
    "COMPUTE_DTYPES",
    "PUBLISHED",
    "RESAMPLE_NAMES",
    "TEXT_FORMULA",
    "TRANSPARENCY",
    "VIEW_FORMULA",
    "Architecture",
    "Checkpoint",
    "ImageRecipe",
    "NaflexRecipe",
    "PatchPooling",
    "SquashRecipe",
    "TextTokenizer",
    "Towers",
    "autocast",
    "cell_grid",
    "check_max_num_patches",
    "checkpoint_activations",
    "checkpoint_identity",
    "compile_layers",
    "embed_hidden_states",
    "embed_image_patches",
    "embed_image_pixels",
    "embed_token_ids",
    "encode_images",
    "file_sha256",
    "files_sha256",
    "find_architecture",
    "find_text_cleaning",
    "graph_limit_reported",
    "is_out_of_memory",
    "load_model",
    "load_trainable",
    "logit_scale_and_bias",
    "on_device",
    "pool_images",
    "pool_token_ids",
    "pool_tokens",
    "read_text_settings",
    "resolve_checkpoint",
    "resolve_compute_dtype",
    "resolve_device",
    "shows_on_white",
    "text_tower",
    "to_device",
    "towers_of",
    "uncompiled",
    "unit_rows",
    "view_pixels",
    "vision_tower",
    "weight_files",
    "with_max_num_patches",
]
