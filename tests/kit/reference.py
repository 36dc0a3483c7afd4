"""What transformers alone makes of a picture or a text, and how far from it something is."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Reference:
    """transformers alone, one picture or one text at a time, in float32."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from transformers import AutoImageProcessor, PreTrainedTokenizerFast, SiglipModel

        self._torch = torch
        self._model: Any = SiglipModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self._processor: Any = AutoImageProcessor.from_pretrained(checkpoint)
        self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(checkpoint)

    def image(self, picture: Image.Image) -> NDArray[np.float64]:
        pixels = self._processor(images=picture.convert("RGB"), return_tensors="pt")
        with self._torch.no_grad():
            row = self._model.get_image_features(pixels["pixel_values"]).pooler_output[0]
        return normalised(row.double().numpy())

    def text(self, text: str) -> NDArray[np.float64]:
        lowered = text.lower().replace("\u03c2", "\u03c3")  # no final sigma, as tokenizers
        ids = self._tokenizer(
            [lowered], padding="max_length", max_length=64, truncation=True, return_tensors="pt"
        )["input_ids"]
        assert ids.shape == (1, 64)
        with self._torch.no_grad():
            row = self._model.get_text_features(input_ids=ids).pooler_output[0]
        return normalised(row.double().numpy())


def normalised(row: NDArray[np.float64]) -> NDArray[np.float64]:
    return row / np.linalg.norm(row)


def distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    return 1 - float(normalised(one.astype(np.float64)) @ normalised(other.astype(np.float64)))
