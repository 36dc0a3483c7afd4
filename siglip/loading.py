"""Loading a model: all of its weights, or an error."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from ..errors import CheckpointError
from ..formatting import first_line
from .checkpoint import Checkpoint
from .model import Towers, vision_tower
from .positions import GridPositions, KeptPositions


def load_model(checkpoint: Checkpoint, *, device: str, compute_dtype: str) -> Any:
    """Return a model in eval mode on a device, with SDPA attention and without gradients.

    It is a SiglipModel or Siglip2Model, or the vision or text model of either if the checkpoint is one tower
    alone. Parameters keep the stored dtype (an SO400M takes 2.3 GB in bfloat16, 4.5 in float32), but
    float32 computes with float32 parameters, and the two half dtypes are not mixed. Of float32 weights those
    of linear layers and convolutions are held in a half ``compute_dtype`` (an SO400M takes 2.9 GB): autocast
    would round them so in each forward pass, and the results are equal.

    Raises:
        CheckpointError: weights are missing, unexpected, or have another shape than in config.json.
    """
    import torch

    is_kept = checkpoint.stored_dtype == "float32" and compute_dtype != "float32"
    dtype = torch.float32 if is_kept else getattr(torch, compute_dtype)
    model = _load(checkpoint, _class(checkpoint, _towers_in(checkpoint)), dtype)
    model = model.eval().requires_grad_(False)
    if is_kept:
        _hold_as_computed(model, getattr(torch, compute_dtype))
    model = model.to(device)
    if checkpoint.model_type == "siglip2" and checkpoint.has_image:
        embeddings = vision_tower(model).embeddings
        resize = embeddings.resize_positional_embeddings
        embeddings.resize_positional_embeddings = KeptPositions(resize)
    return model


def _hold_as_computed(model: Any, dtype: Any) -> None:
    """Round the weights that autocast rounds whenever they are used."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
        elif isinstance(module, nn.MultiheadAttention):
            for name in ("in_proj_weight", "in_proj_bias"):
                parameter = getattr(module, name)
                parameter.data = parameter.data.to(dtype)


def load_trainable(checkpoint: Checkpoint, *, towers: Towers, is_new: bool) -> Any:
    """Return a model in train mode on the CPU, every parameter float32 and with gradient.

    Args:
        checkpoint: the student; only its settings are used for a new model.
        towers: both gives a SiglipModel or Siglip2Model; image a SiglipVisionModel or Siglip2VisionModel,
            text a SiglipTextModel or Siglip2TextModel, without logit scale and bias.
        is_new: whether weights are drawn by transformers from the random state of torch. logit_scale and
            logit_bias are then 0 and must be set by the caller.

    Raises:
        CheckpointError: weights are missing, unexpected, or have another shape than in config.json.
    """
    import torch

    model_class = _class(checkpoint, towers)
    if is_new:
        with quiet_transformers():
            stored = _towers_in(checkpoint)
            config = _class(checkpoint, stored).config_class.from_pretrained(checkpoint.folder)
            if stored != towers:
                config = config.vision_config if towers == "image" else config.text_config
            model = model_class._from_config(
                config, dtype=torch.float32, attn_implementation="sdpa"
            )
    else:
        left_out = {
            "both": (),
            "image": ("text_model.", "logit_"),
            "text": ("vision_model.", "logit_"),
        }[towers]
        model = _load(checkpoint, model_class, torch.float32, left_out)
    model = model.train().requires_grad_(True)
    if checkpoint.model_type == "siglip2" and towers != "text":
        embeddings = vision_tower(model).embeddings
        resize = embeddings.resize_positional_embeddings
        embeddings.resize_positional_embeddings = GridPositions(resize)
    return model


def checkpoint_activations(model: Any) -> None:
    """Make a trainable model recompute activations in the backward pass instead of keeping them."""
    # The name since transformers 5.23; the older one warns there.
    name = "activation_checkpointing_enable"
    if not hasattr(model, name):
        name = "gradient_checkpointing_enable"
    getattr(model, name)({"use_reentrant": False})


def _towers_in(checkpoint: Checkpoint) -> Towers:
    if not checkpoint.has_image:
        return "text"
    return "both" if checkpoint.has_text else "image"


def _class(checkpoint: Checkpoint, towers: Towers) -> Any:
    """Return the class of transformers for some towers of a checkpoint."""
    name = {"both": "Model", "image": "VisionModel", "text": "TextModel"}[towers]
    if checkpoint.model_type == "siglip2":
        from transformers.models.siglip2 import modeling_siglip2

        return getattr(modeling_siglip2, f"Siglip2{name}")
    from transformers.models.siglip import modeling_siglip

    return getattr(modeling_siglip, f"Siglip{name}")


def _load(
    checkpoint: Checkpoint, model_class: Any, dtype: Any, left_out: tuple[str, ...] = ()
) -> Any:
    """Return a model with all its weights, which are all weights not starting with ``left_out``."""
    from safetensors import SafetensorError

    with quiet_transformers():
        try:
            model, info = cast(
                "tuple[Any, dict[str, Any]]",
                model_class.from_pretrained(
                    checkpoint.folder,
                    dtype=dtype,
                    attn_implementation="sdpa",
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # refused below, by name
                ),
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{checkpoint.folder} does not load: {first_line(error)}"
            ) from error
    for fault in ("missing", "mismatched", "unexpected"):
        names = sorted(key if isinstance(key, str) else key[0] for key in info[f"{fault}_keys"])
        if fault == "unexpected":
            names = [name for name in names if not name.startswith(left_out)] if left_out else names
        if names:  # transformers would continue with random numbers
            raise CheckpointError(
                f"{checkpoint.folder} has {len(names)} {fault} weights: {', '.join(names[:3])}"
                f"{', ...' if len(names) > 3 else ''}; download the checkpoint again, or use "
                "config.json and weights of one checkpoint"
            )
    return model


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Silence progress bars of transformers, and warnings about special ids in the published configs.

    Those ids are wrong and not used. Errors are still raised.
    """
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
