"""The files that make sentence-transformers pad texts of an exported model as in training.

Without them it pads each batch of texts to the longest one. A SigLIP text tower pools its last position, so
most texts would get a wrong embedding, without a warning.
"""

import json
from pathlib import Path
from typing import Any

from ...siglip import Checkpoint, TextTokenizer
from ...siglip.text_settings import read_text_settings
from .tokenizer import PROBES

_TOWER = {"method_output_name": "pooler_output"}


def write_sentence_transformers(folder: Path, text: Checkpoint | None) -> bool:
    """Write the files that sentence-transformers reads; return whether its embeddings are correct.

    Writes nothing if its tokens differ from those of training. The check needs no sentence-transformers,
    which uses the tokens of AutoProcessor.

    Args:
        folder: an export, complete except for README.md.
        text: checkpoint of the text tower; None for an image tower alone.
    """
    if text is None:
        modalities = {"image": {"method": "forward", **_TOWER}}
        processing: dict[str, Any] = {}
    else:
        padding = {"padding": "max_length", "max_length": text.max_text_tokens, "truncation": True}
        if not _tokens_are_right(folder, text, padding):
            return False
        modalities = {
            name: {"method": f"get_{name}_features", **_TOWER} for name in ("text", "image")
        }
        processing = {"text": padding}
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
    return True


def _tokens_are_right(folder: Path, text: Checkpoint, padding: dict[str, Any]) -> bool:
    import numpy as np
    from transformers import AutoProcessor

    if read_text_settings(text.folder).is_siglip1:  # not tried: it may need sentencepiece
        return True
    processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
    found = processor(text=PROBES, **padding)
    is_alone = "attention_mask" not in found
    return is_alone and np.array_equal(found["input_ids"], TextTokenizer(text)(PROBES))
