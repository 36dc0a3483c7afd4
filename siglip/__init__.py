"""What is peculiar to SigLIP and SigLIP 2 checkpoints: settings, identity, texts, forward pass.

Everything up to the identity reads plain files, so that a build with nothing left to do finishes
without importing torch. The recipe of a checkpoint:

    pixels   RGB, squashed to the checkpoint's square by Pillow -> rescaled and normalised here
    text     lowercased, tokenized, eos appended, cut to 64 ids with eos kept, padded on the right
    both     `.pooler_output` of the tower (the text tower's is its *last position*, so padding is
             part of the function and there is no attention mask), then L2-normalised in float32
"""

from .checkpoint import (
    COMPUTE_DTYPES,
    RESAMPLE_NAMES,
    Checkpoint,
    checkpoint_identity,
    logit_scale_and_bias,
    resolve_checkpoint,
)
from .files import file_sha256
from .model import embed_image_pixels, embed_token_ids, load_model
from .text import TextTokenizer

__all__ = [
    "COMPUTE_DTYPES",
    "RESAMPLE_NAMES",
    "Checkpoint",
    "TextTokenizer",
    "checkpoint_identity",
    "embed_image_pixels",
    "embed_token_ids",
    "file_sha256",
    "load_model",
    "logit_scale_and_bias",
    "resolve_checkpoint",
]
