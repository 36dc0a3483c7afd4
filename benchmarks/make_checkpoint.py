"""Write a SigLIP 2 checkpoint of a true architecture with random weights.

    python benchmarks/make_checkpoint.py --arch so400m-patch14-224 --processor FOLDER --out T

The folder loads with plain ``AutoModel.from_pretrained`` and ``AutoProcessor.from_pretrained``.
Its embeddings mean nothing, but different images and texts get clearly different ones.
Weights are drawn tensor by tensor straight into the target dtype and streamed to disk, so that the
largest architecture needs no more memory than a few of its rows.
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

from siglip2_cache.demo.architecture import IMAGE_PROCESSOR, TOKENIZER_CONFIG
from siglip2_cache.siglip.published import (
    NAFLEX_PATCHES,
    PUBLISHED,
    PublishedSize,
    TowerSize,
)

# The published ones, and two that take milliseconds.
_TINY = TowerSize(64, 128, 2, 4)
ARCHS: dict[str, PublishedSize] = {
    "tiny-patch16-64": PublishedSize(_TINY, _TINY, 16, 64),
    "tiny-patch16-naflex": PublishedSize(_TINY, _TINY, 16, None),
    **PUBLISHED,
}
MAX_NUM_PATCHES = NAFLEX_PATCHES
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

# About the published ones (4.7476 and -16.777); the scale is a logarithm, as stored.
CONSTANTS = {"logit_scale": 4.75, "logit_bias": -16.8}

PAD, EOS, BOS, UNK = 0, 1, 2, 3
PUBLISHED_VOCAB_SIZE = 256_000
SMALL_VOCAB_SIZE = 512
MAX_TEXT_TOKENS = 64

# What the small tokenizer learns its merges from; being byte-level it encodes any script.
_SENTENCES = """
a photo of a cat and a dog on a couch in the living room
A man riding a wave on top of a surfboard in the ocean.
Two people standing next to a red bus on a city street.
a plate of food with rice, vegetables and meat on a wooden table
A group of young children playing football in the park with a ball.
the woman is holding a black umbrella and walking with her white dog
A large clock tower and a train station with people waiting outside
ein Foto von einer Katze und einem Hund auf der Straße
une photo d'un chat noir assis sur une chaise près de la fenêtre
una foto de un perro grande en la playa con una pelota roja
фотография кошки и собаки на улице большого города
一张猫和狗坐在沙发上的照片
صورة قطة تجلس على الطاولة
""".strip().splitlines()


def make_checkpoint(
    arch: str,
    out: str | Path,
    processor: str | Path | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
    vocab_size: int | None = None,
) -> Path:
    """Return the folder written: config.json, model.safetensors, tokenizer and processor files.

    Args:
        arch: one of ARCHS.
        out: folder to write; it may exist, files of these names are replaced.
        processor: folder of a published checkpoint's tokenizer and processor files; None makes a
            small byte-level tokenizer, which like the published files neither lowercases nor pads.
            (AutoProcessor takes a NaFlex checkpoint's for a Siglip2Tokenizer, which does both, but
            then cuts up words in its own way: compare texts only with the published files.)
        dtype: how the weights are stored, one of DTYPES.
        seed: the same seed gives the same bytes.
        vocab_size: of the text tower; None: that of the published ones, or of the small tokenizer for a
            tiny one without a processor.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    is_small = arch.startswith("tiny") and processor is None
    vocab_size = vocab_size or (SMALL_VOCAB_SIZE if is_small else PUBLISHED_VOCAB_SIZE)
    config = checkpoint_config(arch, vocab_size, dtype)
    _write_json(out / "config.json", config)
    _write_weights(out / "model.safetensors", config, dtype, seed)
    settings: dict[str, Any] = IMAGE_PROCESSOR
    if processor is None:
        _write_small_tokenizer(out, config["model_type"])
    else:
        for path in sorted(Path(processor).iterdir()):
            if path.name.startswith(("tokenizer", "special_tokens_map")):
                shutil.copyfile(path, out / path.name)
        settings = json.loads((Path(processor) / "preprocessor_config.json").read_text("utf-8"))
    settings = {name: value for name, value in settings.items() if name != "size"}
    _write_json(out / "preprocessor_config.json", settings | _image_size(arch))
    return out


def _image_size(arch: str) -> dict[str, Any]:
    """Return what of the image processor's settings depends on the architecture."""
    _, _, patch_size, image_size = ARCHS[arch]
    if image_size is not None:
        return {"size": {"height": image_size, "width": image_size}}
    return {
        "image_processor_type": "Siglip2ImageProcessor",
        "processor_class": "Siglip2Processor",
        "patch_size": patch_size,
        "max_num_patches": MAX_NUM_PATCHES,
    }


def checkpoint_config(
    arch: str, vocab_size: int = PUBLISHED_VOCAB_SIZE, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """Return what config.json of such a checkpoint says."""
    vision, text, patch_size, image_size = ARCHS[arch]
    model_type = "siglip2" if image_size is None else "siglip"
    size = {"num_patches": MAX_NUM_PATCHES} if image_size is None else {"image_size": image_size}
    return {
        "architectures": ["Siglip2Model" if image_size is None else "SiglipModel"],
        "model_type": model_type,
        "dtype": dtype,
        "text_config": {
            "model_type": f"{model_type}_text_model",
            **text._asdict(),
            "projection_size": vision[0],
            "vocab_size": vocab_size,
            "max_position_embeddings": MAX_TEXT_TOKENS,
            "pad_token_id": PAD,
            "eos_token_id": EOS,
            "bos_token_id": BOS,
        },
        "vision_config": {
            "model_type": f"{model_type}_vision_model",
            **vision._asdict(),
            "patch_size": patch_size,
            **size,
        },
    }


def _write_weights(path: Path, config: dict[str, Any], dtype: str, seed: int) -> None:
    """Write the safetensors file without ever holding more than a slice of one tensor."""
    import torch
    from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

    with torch.device("meta"):
        model: Any = (
            Siglip2Model(Siglip2Config(**config))
            if config["model_type"] == "siglip2"
            else SiglipModel(SiglipConfig(**config))
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in sorted(model.state_dict().items())}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # bfloat16 would make -16.75 of -16.8, so these two stay float32.
    dtypes = {name: "float32" if name in CONSTANTS else dtype for name in shapes}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * getattr(torch, dtypes[name]).itemsize
        offsets = [start, end]
        header[name] = {"dtype": DTYPES[dtypes[name]], "shape": shape, "data_offsets": offsets}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # the format wants tensors aligned to 8 bytes

    generator = torch.Generator().manual_seed(seed)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in shapes.items():
            rows_at_a_time = max(1, (1 << 22) // math.prod(shape[1:]))
            for row in range(0, shape[0], rows_at_a_time):
                part = torch.empty(min(rows_at_a_time, shape[0] - row), *shape[1:])
                _fill(part, name, row, generator)
                file.write(part.to(getattr(torch, dtypes[name])).view(torch.uint8).numpy().data)


def _fill(part: Any, name: str, row: int, generator: Any) -> None:
    if name in CONSTANTS:
        part.fill_(CONSTANTS[name])
    elif "norm" in name:
        part.fill_(1.0 if name.endswith("weight") else 0.0)
    elif name.endswith("bias"):
        part.zero_()
    else:
        part.normal_(std=_standard_deviation(name, part.shape), generator=generator)
        if name.endswith("token_embedding.weight") and row == 0:
            part[PAD].zero_()  # else 50 equal pads drown a caption of 12 tokens in the attention


def _standard_deviation(name: str, shape: Any) -> float:
    """Keep variances from layer to layer, and tokens well above their positions.

    Sharper attention (queries and keys x 3) would spread the embeddings more, but in the SO400M a
    bfloat16 forward at another batch size then differs by 1 - cos = 0.3 instead of 1e-4.
    """
    if name.endswith(("token_embedding.weight", "probe")):
        return 1.0
    if name.endswith("position_embedding.weight"):
        return 0.1
    return 1 / math.sqrt(math.prod(shape[1:]))


def _write_small_tokenizer(out: Path, model_type: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SMALL_VOCAB_SIZE,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"],  # ids 0 to 3, as in SigLIP 2
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B:1 <eos>:1", special_tokens=[("<eos>", EOS)]
    )
    tokenizer.save(str(out / "tokenizer.json"))
    config = {name: value for name, value in TOKENIZER_CONFIG.items() if name != "model_max_length"}
    config["processor_class"] = f"{model_type.capitalize()}Processor"
    _write_json(out / "tokenizer_config.json", config)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", choices=sorted(ARCHS), required=True)
    parser.add_argument("--processor", type=Path, help="folder of real tokenizer and image files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = make_checkpoint(**vars(options))
    num_bytes = (out / "model.safetensors").stat().st_size
    print(f"{out}: {options.arch}, {options.dtype}, {num_bytes / 1e9:.2f} GB of random weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
