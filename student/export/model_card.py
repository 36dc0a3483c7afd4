"""The model card of a student: README.md of the folder that is exported."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from ...errors import SettingError
from ...formatting import one_line

Number = float | int | str | None
"""A cell of the results table: strings are shown unchanged, None as n/a."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSummary:
    """The training data in numbers that can be published."""

    samples: int
    captions: int
    texts: int
    """Unique texts."""

    views: int
    """Views of each image."""

    corpora: Sequence[str]
    """Kind of each corpus, e.g. ``webdataset``; no paths, which are private."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Contents of a model card besides the usage."""

    name: str
    """Title of the card."""

    student: str
    """Hub id or path of the initial student; only the last part of an absolute path is shown."""

    base_model: str | None = None
    """Hub id of the initial student, or of what it was cut from; None for a local folder."""

    license: str | None = None
    """License of the initial student, as the hub writes it; None: unknown."""

    datasets: Sequence[str] = ()
    """Hub ids of the corpora that are datasets of the hub."""

    languages: Sequence[str] = ()
    """Codes of the languages of the captions."""

    teachers: Sequence[str]
    """Hub id or path of each teacher; only the last part of an absolute path is shown."""

    cache: CacheSummary

    objectives: Mapping[str, float]
    """Weight of each loss term by name; those of weight 0 are left out."""

    steps: int
    """Optimizer steps."""

    is_average: bool = False
    """Whether the weights are the moving average over these steps."""

    global_batch_size: int
    """Images in one step, over all processes."""

    towers: Literal["both", "image", "text"]
    """Towers that were trained."""

    results: Sequence[tuple[str, Number, Number, Number]] = ()
    """Rows of (metric, teacher, student before, student after)."""

    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Version of each package by its name."""

    def __post_init__(self) -> None:
        if self.base_model is not None and not re.fullmatch(
            r"[\w-][\w.-]*/[\w-][\w.-]*", self.base_model
        ):
            raise SettingError(
                f"card.base_model {self.base_model!r} is not a hub id such as "
                "google/siglip2-base-patch16-224; leave it out for a local folder"
            )


def render_card(
    card: ModelCard,
    *,
    text_class: str | None,
    tokenizer_class: str | None,
    max_text_tokens: int,
    has_pipeline: bool,
    has_sentence_transformers: bool,
    widths: tuple[int, int] | None = None,
) -> str:
    """Return README.md: front matter, usage that runs unchanged, training, results.

    Args:
        card: the contents.
        text_class: class of transformers of a text tower alone; None: there is an image tower.
        tokenizer_class: class of transformers that loads the folder's tokenizer; None for an image
            tower alone.
        max_text_tokens: positions of the text tower.
        has_pipeline: whether transformers' zero-shot pipeline is correct for this model.
        has_sentence_transformers: whether sentence-transformers computes the right embeddings.
        widths: of this model and of the teacher, if projection.safetensors maps between them for users.
    """
    if tokenizer_class is None:
        usage = _IMAGE_USAGE
    else:
        template = _USAGE if has_pipeline else _USAGE_WITHOUT_PIPELINE
        template = template if text_class is None else _TEXT_USAGE
        usage = template.format(
            L=max_text_tokens,
            cls=tokenizer_class,
            chosen=_chosen(tokenizer_class),
            model=text_class,
        )
    parts = [
        _front_matter(card, has_image=text_class is None, has_text=tokenizer_class is not None),
        f"# {_escaped(card.name)}",
        _summary(card),
        usage,
        _sentence_transformers(has_text=tokenizer_class is not None)
        if has_sentence_transformers
        else _NO_SENTENCE_TRANSFORMERS * (text_class is None),
        "" if widths is None else _in_teacher_space(widths, tokenizer_class is not None),
        _training(card),
        *([_results(card)] if card.results else []),
        _license(card),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


# Image processor and tokenizer are loaded separately: Siglip2Processor of transformers 5.23 always takes
# 256 patches of a NaFlex image, whatever limit the files have.
_USAGE = """\
## Usage

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, {cls}, pipeline

folder = "."  # this folder, or its id on the hub
model = AutoModel.from_pretrained(folder).eval()
image_processor = AutoImageProcessor.from_pretrained(folder)
tokenizer = {cls}.from_pretrained(folder)

image = Image.open("picture.jpg").convert("RGB")
texts = tokenizer(
    ["This is a photo of a red cat.", "This is a photo of two dogs."],
    padding="max_length", truncation=True, max_length={L}, return_tensors="pt",
)
with torch.no_grad():
    output = model(input_ids=texts["input_ids"], **image_processor(image, return_tensors="pt"))
scores = torch.sigmoid(output.logits_per_image)[0]  # one probability a text; they need not add up to 1

classify = pipeline("zero-shot-image-classification", model=folder{chosen})
results = classify(image, candidate_labels=["a red cat", "two dogs"])
```

The text tower pools its last position, so it needs `padding="max_length", truncation=True`: texts are always
{L} tokens, without an attention mask. The tokenizer lowercases texts.
"""

_PIPELINE = """
classify = pipeline("zero-shot-image-classification", model=folder{chosen})
results = classify(image, candidate_labels=["a red cat", "two dogs"])
"""
_USAGE_WITHOUT_PIPELINE = (
    _USAGE.replace(_PIPELINE, "").replace("{cls}, pipeline\n", "{cls}\n").rstrip()
    + """
The zero-shot pipeline of transformers pads texts differently and gives wrong scores for this model.
"""
)

_IMAGE_USAGE = """\
## Usage

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

folder = "."  # this folder, or its id on the hub
model = AutoModel.from_pretrained(folder).eval()
image_processor = AutoImageProcessor.from_pretrained(folder)

image = Image.open("picture.jpg").convert("RGB")
with torch.no_grad():
    output = model(**image_processor(image, return_tensors="pt"))
embedding = torch.nn.functional.normalize(output.pooler_output, dim=-1)[0]
```

This is an image tower alone. It was trained with the teacher's text embeddings, which are not included.
`siglip2_cache.json` holds the logit scale (a logarithm) and bias for them.
"""


_TEXT_USAGE = """\
## Usage

```python
import torch
from transformers import {cls}, {model}

folder = "."  # this folder, or its id on the hub
model = {model}.from_pretrained(folder).eval()
tokenizer = {cls}.from_pretrained(folder)

texts = tokenizer(
    ["This is a photo of a red cat.", "This is a photo of two dogs."],
    padding="max_length", truncation=True, max_length={L}, return_tensors="pt",
)
with torch.no_grad():
    output = model(input_ids=texts["input_ids"])
embeddings = torch.nn.functional.normalize(output.pooler_output, dim=-1)
```

This is a text tower alone. It was trained with the teacher's image embeddings, which are not included.
`siglip2_cache.json` holds the logit scale (a logarithm) and bias for them. It pools its last position, so it
needs `padding="max_length", truncation=True`: texts are always {L} tokens, without an attention mask. The
tokenizer lowercases texts. AutoModel and sentence-transformers do not load a text tower alone.
"""


_SENTENCE_TRANSFORMERS = """\
With [sentence-transformers](https://sbert.net) 6. The embeddings are not normalised: compare them by cosine.

```python
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")  # this folder, or its id on the hub
images = model.encode([Image.open("picture.jpg").convert("RGB")])
"""
_OF_TEXTS = """\
texts = model.encode(["This is a photo of a red cat.", "This is a photo of two dogs."])
cosines = model.similarity(images, texts)
"""
_NO_SENTENCE_TRANSFORMERS = (
    "sentence-transformers loads another tokenizer and gives wrong embeddings for this model."
)


def _sentence_transformers(*, has_text: bool) -> str:
    return _SENTENCE_TRANSFORMERS + (_OF_TEXTS if has_text else "") + "```"


_TEACHER_SPACE = """\
## An index of the teacher's embeddings

`projection.safetensors` maps embeddings of this model (width {D}) to the space of the teacher (width {E}).
An index of the teacher's embeddings keeps working with such queries. sentence-transformers applies the map by
itself. With transformers, after the code above:

```python
from safetensors.torch import load_file

map_ED = load_file(f"{{folder}}/projection.safetensors")["map_ED"]
queries = torch.nn.functional.normalize({rows} @ map_ED.T, dim=-1)
```
"""


def _in_teacher_space(widths: tuple[int, int], has_text: bool) -> str:
    rows = "output.text_embeds" if has_text else "output.pooler_output"
    return _TEACHER_SPACE.format(D=widths[0], E=widths[1], rows=rows)


def _chosen(tokenizer_class: str) -> str:
    """Return the argument that names the tokenizer; a pipeline loads AutoTokenizer without it."""
    return "" if tokenizer_class == "AutoTokenizer" else ", tokenizer=tokenizer"


def _front_matter(card: ModelCard, *, has_image: bool, has_text: bool) -> str:
    """Return the YAML header; values are written as JSON, so that no name can break it."""
    task = "zero-shot-image-classification" if has_text else "image-feature-extraction"
    task = task if has_image else "feature-extraction"
    fields: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["siglip", "distillation", "siglip2-cache"],
    }
    if card.base_model is not None:
        fields |= {"base_model": card.base_model, "base_model_relation": "finetune"}
    for name, value in (
        ("license", card.license),
        ("datasets", list(card.datasets)),
        ("language", list(card.languages)),
    ):
        if value:
            fields[name] = value
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _license(card: ModelCard) -> str:
    name = "The license" if card.license is None else f"The license ({_escaped(card.license)})"
    return f"## License\n\n{name} of the student checkpoint named above applies."


def _summary(card: ModelCard) -> str:
    of = "the teacher " if len(card.teachers) == 1 else "the teachers "
    of += " and ".join(_code(_shown(each)) for each in card.teachers)
    return f"{_code(_shown(card.student))} trained with siglip2-cache on cached embeddings of {of}."


def _training(card: ModelCard) -> str:
    cache = card.cache
    weights = [f"{name} {weight:g}" for name, weight in card.objectives.items() if weight]
    trained = {"both": "image and text", "image": "image only", "text": "text only"}[card.towers]
    rows = [
        (
            "data",
            f"{cache.samples:,} samples, {cache.captions:,} captions, {cache.texts:,} unique texts",
        ),
        ("views per image", f"{cache.views:,}"),
        ("corpora", ", ".join([*cache.corpora, *card.datasets])),
        ("languages of captions", ", ".join(card.languages)),
        ("loss terms (weight)", ", ".join(weights)),
        ("steps", f"{card.steps:,} of {card.global_batch_size:,} images"),
        ("weights", "exponential moving average" if card.is_average else ""),
        ("towers trained", trained),
        ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())),
    ]
    return "## Training\n\n" + _table(("", ""), [row for row in rows if row[1]])


def _results(card: ModelCard) -> str:
    rows = [(metric, *map(_number, numbers)) for metric, *numbers in card.results]
    return "## Results\n\n" + _table(("", "teacher", "student before", "student after"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    lines = [header, rule, *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: Number) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "n/a" if value is None else str(value)


def _shown(source: str) -> str:
    path = PurePath(source)
    return path.name if path.is_absolute() else source


def _escaped(text: str) -> str:
    """Return a text as one line without Markdown markup, safe in a table cell."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&$])", r"\\\1", one_line(text))


def _code(text: str) -> str:
    """Return a text as inline code; back quotes become single quotes."""
    return "`" + one_line(text).replace("`", "'") + "`"
