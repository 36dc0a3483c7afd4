"""The files that make sentence-transformers pad texts of an exported model as in training.

Without them it pads each batch of texts to the longest one. A SigLIP text tower pools its last position, so
most texts would get a wrong embedding, without a warning.
"""

import json
from pathlib import Path
from typing import Any

from ...siglip import Checkpoint
from .programs import padding_of

_TOWER = {"method_output_name": "pooler_output"}


def write_sentence_transformers(folder: Path, text: Checkpoint | None) -> None:
    """Write the files that sentence-transformers reads.

    Args:
        folder: an export, complete except for README.md.
        text: checkpoint of the text tower; None for an image tower alone.
    """
    if text is None:
        modalities = {"image": {"method": "forward", **_TOWER}}
        processing: dict[str, Any] = {}
    else:
        modalities = {
            name: {"method": f"get_{name}_features", **_TOWER} for name in ("text", "image")
        }
        processing = {"text": padding_of(text)}
    files: dict[str, Any] = {
        "modules.json": [
            {
                "idx": 0,
                "name": "0",
                "path": "",
                "type": "sentence_transformers.base.modules.transformer.Transformer",
            }
        ],
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
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
