"""The files that make sentence-transformers pad texts of an exported model as in training.

Without them it pads each batch of texts to the longest one. A SigLIP text tower pools its last position, so
most texts would get a wrong embedding, without a warning.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...siglip import Checkpoint
from ...siglip.files import save_weights, write_json
from .programs import padding_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOWER = {"method_output_name": "pooler_output"}
_DENSE = "1_Dense"


def write_sentence_transformers(
    folder: Path, text: Checkpoint | None, map_ED: "NDArray[np.float32] | None" = None
) -> None:
    """Write the files that sentence-transformers reads.

    Args:
        folder: an export, complete except for README.md.
        text: checkpoint of the text tower; None for an image tower alone.
        map_ED: linear map that it applies to every embedding, ``row @ map_ED.T``; None: there is none.
    """
    if text is None:
        modalities = {"image": {"method": "forward", **_TOWER}}
        processing: dict[str, Any] = {}
    else:
        modalities = {
            name: {"method": f"get_{name}_features", **_TOWER} for name in ("text", "image")
        }
        processing = {"text": padding_of(text)}
    modules = [_module(0, "", "transformer.Transformer")]
    if map_ED is not None:
        modules.append(_module(1, _DENSE, "dense.Dense"))
        _write_dense(folder / _DENSE, map_ED)
    files: dict[str, Any] = {
        "modules.json": modules,
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "processing_kwargs": processing,
            "modality_config": modalities,
            "module_output_name": "sentence_embedding",
        },
    }
    for name, value in files.items():
        write_json(folder / name, value)


def _module(number: int, path: str, kind: str) -> dict[str, Any]:
    return {
        "idx": number,
        "name": str(number),
        "path": path,
        "type": f"sentence_transformers.base.modules.{kind}",
    }


def _write_dense(folder: Path, map_ED: "NDArray[np.float32]") -> None:
    import torch

    E, D = map_ED.shape
    folder.mkdir()
    settings = {
        "in_features": D,
        "out_features": E,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write_json(folder / "config.json", settings)
    weights = {"linear.weight": torch.tensor(map_ED)}
    save_weights(folder / "model.safetensors", weights)
