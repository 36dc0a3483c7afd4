"""Two small SigLIP architectures for the generated corpus, and their tokenizer.

    python -m siglip2_cache.demo.architecture teacher OUT

The folder has all files of a checkpoint except the weights: config.json, tokenizer and image processor. The
vocabulary of the tokenizer is the words of the corpus's captions.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .captions import every_caption
from .drawing import IMAGE_SIZE
from .grammar import CHINESE_WORDS
from .scenes import RELATIONS, THINGS, Scene

Size = Literal["teacher", "student"]

CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""The shipped models: teacher/ and student/."""

MAX_TEXT_TOKENS = 16
"""The longest captions have 15 words and eos; with SigLIP's 64 the rest would be padding."""

_SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")  # ids 0 to 3, as in SigLIP 2
_PUNCTUATION = r"[\p{P}&&[^'\-]]"  # keeps d'une and au-dessus


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """Sizes of both towers of one model; the embedding has their width."""

    width: int
    mlp: int
    heads: int
    vision_layers: int
    text_layers: int
    patch_size: int


TOWERS: dict[Size, Towers] = {
    "teacher": Towers(
        width=128, mlp=256, heads=4, vision_layers=4, text_layers=2, patch_size=8
    ),  # 1.0 M parameters
    "student": Towers(
        width=64, mlp=128, heads=4, vision_layers=3, text_layers=1, patch_size=8
    ),  # 0.2 M
}


def write_architecture(size: Size, folder: str | Path) -> Path:
    """Write all files of a checkpoint except the weights, always the same bytes; return the folder.

    ``AutoModel.from_config(AutoConfig.from_pretrained(folder))`` makes a model with random weights; set its
    logit_scale and logit_bias, which are 0, to log 10 and -10.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    image_size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    _write_json(folder / "preprocessor_config.json", IMAGE_PROCESSOR | {"size": image_size})
    _write_json(folder / "config.json", _config(TOWERS[size], tokenizer.get_vocab_size()))
    return folder


def _config(towers: Towers, vocab_size: int) -> dict[str, Any]:
    shared = {
        "hidden_size": towers.width,
        "intermediate_size": towers.mlp,
        "num_attention_heads": towers.heads,
    }
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": "float32",
        "text_config": {
            "model_type": "siglip_text_model",
            **shared,
            "num_hidden_layers": towers.text_layers,
            "projection_size": towers.width,
            "vocab_size": vocab_size,
            "max_position_embeddings": MAX_TEXT_TOKENS,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            **shared,
            "num_hidden_layers": towers.vision_layers,
            "patch_size": towers.patch_size,
            "image_size": IMAGE_SIZE,
        },
    }


def _tokenizer() -> Any:
    """Return a tokenizer of words: splits at spaces, splits Chinese words, ignores case and punctuation."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    normalizer: Any = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(_PUNCTUATION), " ")]
    )
    chinese = "|".join((*sorted(CHINESE_WORDS, key=len, reverse=True), r"\p{Han}"))
    pieces: Any = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(chinese), "isolated")]
    )
    words = {
        word
        for text in _every_text()
        for word, _ in pieces.pre_tokenize_str(normalizer.normalize_str(text))
    }
    vocab = {word: i for i, word in enumerate((*_SPECIAL_TOKENS, *sorted(words)))}
    tokenizer: Any = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pieces
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B:1 <eos>:1", special_tokens=[("<eos>", 1)]
    )
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    return tokenizer


def _every_text() -> Iterator[str]:
    """Yield texts with every word of all captions: each object both large and small."""
    for i, (large, small) in enumerate(zip(THINGS, THINGS[::-1], strict=True)):
        scene = Scene(large, RELATIONS[i % len(RELATIONS)], small)
        yield from (caption.text for caption in every_caption(scene))


TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "processor_class": "SiglipProcessor",
    "model_input_names": ["input_ids"],
    "model_max_length": MAX_TEXT_TOKENS,
    "padding_side": "right",
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
}
IMAGE_PROCESSOR: dict[str, Any] = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "SiglipProcessor",
    "resample": 2,
    "rescale_factor": 1 / 255,
}
"""preprocessor_config.json of a model of fixed resolution, without its size."""


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m siglip2_cache.demo.architecture",
        description="Write the configuration, tokenizer and image processor of a small model.",
    )
    parser.add_argument("size", choices=sorted(TOWERS))
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    print(f"wrote {write_architecture(given.size, given.out)}, without weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
