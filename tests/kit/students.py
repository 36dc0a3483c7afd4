"""Students so small that a step takes milliseconds."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def write_student(
    source: Path, folder: Path, *, dropout: float = 0.0, image_size: int = 32, seed: int = 0
) -> Path:
    """Write a checkpoint of width 32, and one layer; it begins at the paper's t', b.

    Args:
        source: a tiny checkpoint of make_checkpoint, whose tokenizer and image processor it takes.
        folder: to write.
        dropout: of the attention of both towers.
        image_size: pixels, where the source is of fixed resolution; of a NaFlex one 16 patches.
        seed: of the weights.
    """
    import transformers

    config = json.loads((source / "config.json").read_text("utf-8"))
    is_naflex = config["model_type"] == "siglip2"
    for name in ("text_config", "vision_config"):
        config[name] |= _TOWER | {"attention_dropout": dropout}
    config["text_config"] |= {"projection_size": 32}
    config["vision_config"] |= {"num_patches": 16} if is_naflex else {"image_size": image_size}
    folder.mkdir(parents=True)
    for path in source.glob("*token*"):
        shutil.copyfile(path, folder / path.name)
    kind = "Siglip2" if is_naflex else "Siglip"
    model_class, config_class = (getattr(transformers, kind + n) for n in ("Model", "Config"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = model_class(config_class(**config))
        # transformers draws weights of 0.02: all images would look alike to such a student.
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.05)
    torch.nn.init.constant_(model.logit_scale, 2.302585)
    torch.nn.init.constant_(model.logit_bias, -10.0)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    processor = json.loads((source / "preprocessor_config.json").read_text("utf-8"))
    size = {"max_num_patches": 16} if is_naflex else {"size": _square(image_size)}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | size))
    return folder


def _square(size: int) -> dict[str, int]:
    return {"height": size, "width": size}
