"""The part of a model card that shows how each runtime loads the student, and how exact it is there."""

import re
from collections.abc import Mapping
from pathlib import Path

from ...siglip import Checkpoint, NaflexRecipe
from ..export.atomic_folder import MARK
from .gate import Parity, parity_cells, teacher_index_lines
from .onnx_student import SUFFIXES

_ONNX = """\
## ONNX

```python
import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoImageProcessor

folder = "."  # this folder
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")  # lowercases, truncates and pads
image_processor = AutoImageProcessor.from_pretrained(folder)
model = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx")

image = image_processor(Image.open("picture.jpg").convert("RGB"), return_tensors="np")
texts = tokenizer.encode_batch(["This is a photo of a red cat.", "This is a photo of two dogs."])
inputs = {**IMAGE, "input_ids": np.array([text.ids for text in texts], np.int64)}
logits = model.run(["logits_per_image"], inputs)[0]
probabilities = 1 / (1 + np.exp(-logits))  # one a text; they need not add up to 1
```

`vision_model.onnx` and `text_model.onnx` are the towers alone: `image_embeds` and `text_embeds` have norm 1,
`pooler_output` is not normalised. A logit is `exp(logit_scale) * cosine + logit_bias`;
both constants are in `export.json`."""
_ONE_TOWER = """\
## ONNX

```python
import numpy as np
import onnxruntime
IMPORT

folder = "."  # this folder
model = onnxruntime.InferenceSession(f"{folder}/onnx/KIND_model.onnx")
INPUTS
embeddings = model.run(["EMBEDS"], inputs)[0]  # of norm 1
```"""
_ONE_IMAGE = {
    "KIND": "vision",
    "EMBEDS": "image_embeds",
    "IMPORT": "from PIL import Image\nfrom transformers import AutoImageProcessor",
    "INPUTS": """\
image_processor = AutoImageProcessor.from_pretrained(folder)
image = image_processor(Image.open("picture.jpg").convert("RGB"), return_tensors="np")
inputs = {**IMAGE}""",
}
_ONE_TEXT = {
    "KIND": "text",
    "EMBEDS": "text_embeds",
    "IMPORT": "from tokenizers import Tokenizer",
    "INPUTS": """\
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")  # cleans, truncates and pads
texts = tokenizer.encode_batch(["This is a photo of a red cat.", "This is a photo of two dogs."])
inputs = {"input_ids": np.array([text.ids for text in texts], np.int64)}""",
}
_FIXED_INPUTS = '"pixel_values": image["pixel_values"]'
_NAFLEX_INPUTS = "**{name: np.asarray(value) for name, value in image.items()}"

_JS = """\
## transformers.js

```js
import { AutoProcessor, AutoTokenizer, RawImage, SiglipModel } from '@huggingface/transformers';

const folder = '.';  // this folder, or its id on the hub
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const processor = await AutoProcessor.from_pretrained(folder);
const model = await SiglipModel.from_pretrained(folder, { dtype: 'fp32' });

// transformers.js resizes without antialiasing; Lanczos is nearest to the filter of training.
const picture = (await RawImage.read('picture.jpg')).rgb();
const images = await processor(await picture.resize(WIDTH, HEIGHT, { resample: 'lanczos' }));
const texts = tokenizer(['This is a photo of a red cat.', 'This is a photo of two dogs.'],
                        { padding: 'max_length', truncation: true });
const { logits_per_image } = await model({ ...texts, ...images });
const probabilities = logits_per_image.sigmoid().tolist()[0];  // one a text; they need not add up to 1
```
"""
_OPEN_CLIP = """\
## open_clip

```python
import open_clip
import torch
from PIL import Image

folder = "local-dir:."  # this folder; on the hub hf-hub:ORG/NAME
model, _, prepare = open_clip.create_model_and_transforms(folder)
tokenizer = open_clip.get_tokenizer(folder)

with torch.no_grad():
    image = model.encode_image(prepare(Image.open("picture.jpg"))[None], normalize=True)
    texts = model.encode_text(tokenizer(["a red cat", "two dogs"]), normalize=True)
    probabilities = torch.sigmoid(model.logit_scale.exp() * image @ texts.T + model.logit_bias)
```

open_clip repairs wrongly decoded text, replaces HTML entities and joins white space before its tokenizer; the
training did not."""

_TEACHER_EMBEDS = """\
The output `teacher_embeds` of the towers is the embedding in the teacher's space, of norm 1, for an index of
the teacher's embeddings."""

_OF_WEIGHTS = ("## Usage", "## An index of the teacher's embeddings")
"""Sections of a card about model.safetensors and projection.safetensors."""

_JS_DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "q8"}


def write_runtime_card(
    checkpoint: Checkpoint,
    folder: Path,
    parities: Mapping[str, Parity],
    left_out: Mapping[str, str],
    *,
    has_map: bool = False,
) -> None:
    """Write README.md: the model's own card, if it has one, then use and exactness of the graphs.

    Of a card of this program the parts about weights that are not in the folder are left out.

    Args:
        checkpoint: the model.
        folder: where README.md is written.
        parities: how each precision differs from the student.
        left_out: the reason for each precision that was not kept.
        has_map: whether the graphs have the output teacher_embeds.
    """
    path = checkpoint.folder / "README.md"
    card = path.read_text("utf-8") if path.is_file() else f"# {checkpoint.name}\n"
    usage = [] if set(parities) <= {"open-clip"} else _onnx_usage(checkpoint)
    library = "transformers.js" if any("## transformers.js" in each for each in usage) else "onnx"
    library = library if usage else "open_clip"
    if usage and has_map:
        usage.append(_TEACHER_EMBEDS)
    if "open-clip" in parities:
        usage.append(_OPEN_CLIP)
    if (checkpoint.folder / MARK).is_file():
        card = _without_weights(card, library)
    parts = [card, *usage, _parity(parities)]
    if left_out:
        parts.append(
            "\n".join(f"- {name} is left out: {reason}" for name, reason in left_out.items())
        )
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _without_weights(card: str, library: str) -> str:
    """Return a card of render_card without what loads model.safetensors, and with another library."""
    head, *sections = re.split(r"^(?=## )", card, flags=re.MULTILINE)
    kept = [each for each in sections if not each.startswith(_OF_WEIGHTS)]
    head = head.replace('library_name: "transformers"', f'library_name: "{library}"', 1)
    return "".join([head, *kept])


def _onnx_usage(checkpoint: Checkpoint) -> list[str]:
    """Return how the graphs are used from Python, and from JavaScript where that loads them."""
    recipe, onnx = checkpoint.image_recipe, _ONNX
    is_whole = checkpoint.has_image and checkpoint.has_text
    if not is_whole:
        onnx = _ONE_TOWER
        for name, text in (_ONE_IMAGE if checkpoint.has_image else _ONE_TEXT).items():
            onnx = onnx.replace(name, text)
    if isinstance(recipe, NaflexRecipe):
        return [onnx.replace("**IMAGE", _NAFLEX_INPUTS)]
    onnx = onnx.replace("**IMAGE", _FIXED_INPUTS)
    if recipe is None or not is_whole:
        return [onnx]
    height, width = recipe.size
    return [onnx, _JS.replace("WIDTH", str(width)).replace("HEIGHT", str(height))]


def _files_of(name: str) -> str:
    """Return two cells of the table: the files, and what transformers.js calls their precision."""
    if name == "open-clip":
        return "`open_clip_model.safetensors` | "
    return f"`onnx/*{SUFFIXES[name]}.onnx` | {_JS_DTYPES[name]}"


def _parity(parities: Mapping[str, Parity]) -> str:
    some = next(iter(parities.values()))
    headings = ["files", "`dtype` of transformers.js", *parity_cells(some)]
    rows = [
        " | ".join(["", *headings, ""]).strip(),
        "|" + " --- |" * len(headings),
        *(
            f"| {_files_of(name)} | {' | '.join(parity_cells(parity).values())} |"
            for name, parity in parities.items()
        ),
    ]
    heading, *found = teacher_index_lines(parities) or [""]
    return (
        f"Compared with PyTorch in float32 on {some.compared} (least cosine, largest error, R@1 of the files "
        "of that of PyTorch):\n\n"
        + "\n".join(rows)
        + f"\n\n{heading.capitalize()}\n\n" * bool(heading)
        + "\n".join(f"- {line.strip()}" for line in found)
    )
