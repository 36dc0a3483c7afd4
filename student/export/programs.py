"""Whether texts become the right token ids in other programs, tried with the installed transformers.

Loading a published tokenizer takes seconds, so each is loaded once for all that is tried. transformers is
imported by name, since a type checker would read all of its models: a quarter of `make lint`.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from ...siglip import Checkpoint, TextTokenizer
from ...siglip.text_settings import read_text_settings

_PIPELINE_TOKENS = 64

# Capitals (a final sigma and a dotted I among them), spaces, no word, more words than fit, none.
PROBES = ["A Red CAT", "ΟΔΥΣΣΕΥΣ İstanbul", "two  spaces\nand a line", "猫 😀", "Word " * 99, ""]
"""Texts whose ids tell whether a tokenizer cleans, cuts and pads as in training."""


@dataclass(frozen=True, slots=True)
class TextPrograms:
    """How other programs get the token ids that the text tower needs."""

    tokenizer_class: Literal["AutoTokenizer", "PreTrainedTokenizerFast", "SiglipTokenizer"]
    """The class that loads the tokenizer correctly. It is AutoTokenizer, except that for NaFlex transformers
    5.23 always loads Siglip2Tokenizer, which splits words as the published tokenizer does. If that gives
    other ids, users and pipelines must name the class."""

    has_pipeline: bool
    """Whether transformers' zero-shot pipeline gives them with that class. It always pads to 64 tokens."""

    has_sentence_transformers: bool
    """Whether sentence-transformers gives them, which uses AutoProcessor and AutoModel. The latter does not
    load a text tower alone."""


def try_programs(checkpoint: Checkpoint, folder: Path, *, image: Checkpoint | None) -> TextPrograms:
    """Return what a few texts become in other programs, without the model.

    Args:
        checkpoint: checkpoint of the exported text tower.
        folder: an export, complete except for README.md.
        image: checkpoint of the exported image tower; None for a text tower alone.
    """
    import numpy as np

    transformers: Any = import_module("transformers")
    if read_text_settings(checkpoint.folder).is_siglip1:  # not tried: it may need sentencepiece
        return TextPrograms(
            tokenizer_class=(
                "SiglipTokenizer"
                if (image or checkpoint).model_type == "siglip2"
                else "AutoTokenizer"
            ),
            has_pipeline=image is not None and checkpoint.max_text_tokens == _PIPELINE_TOKENS,
            has_sentence_transformers=image is not None,
        )
    expected = TextTokenizer(checkpoint)(PROBES)

    def is_right(texts: Any) -> bool:
        # An attention mask would change the embedding.
        return list(texts) == ["input_ids"] and np.array_equal(texts["input_ids"], expected)

    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    tokenizer = processor if image is None else processor.tokenizer  # what AutoTokenizer loads
    found = tokenizer(PROBES, padding="max_length", truncation=True)
    is_auto = np.array_equal(found["input_ids"], expected)
    if not is_auto:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True
        )
    padding = padding_of(checkpoint)
    return TextPrograms(
        tokenizer_class="AutoTokenizer" if is_auto else "PreTrainedTokenizerFast",
        has_pipeline=image is not None
        and is_right(_prepare_for_pipeline(folder, tokenizer, processor.image_processor)),
        has_sentence_transformers=image is not None and is_right(processor(text=PROBES, **padding)),
    )


def padding_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the settings of AutoProcessor that pad texts as in training."""
    return {"padding": "max_length", "max_length": checkpoint.max_text_tokens, "truncation": True}


def _prepare_for_pipeline(folder: Path, tokenizer: Any, image_processor: Any) -> Any:
    """Return the texts as the pipeline's own code prepares them."""
    import torch
    from PIL import Image

    transformers: Any = import_module("transformers")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    pipeline = SimpleNamespace(
        model=SimpleNamespace(config=config),
        tokenizer=tokenizer,
        image_processor=image_processor,
        dtype=torch.float32,
    )
    prepare = transformers.ZeroShotImageClassificationPipeline.preprocess
    picture = Image.new("RGB", (32, 32))
    inputs = prepare(pipeline, picture, candidate_labels=PROBES, hypothesis_template="{}")
    [texts] = inputs["text_inputs"]
    return texts
