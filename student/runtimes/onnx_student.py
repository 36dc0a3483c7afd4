"""A folder of ONNX graphs as its user runs it: its own tokenizer, its own image settings, onnxruntime.

Shape letters in this file:
    B = batch, C = 3 colours, H, W = pixels, N = patches, P = values of a patch, D = embedding width.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...siglip import Checkpoint, NaflexRecipe, resolve_checkpoint

FOLDER = "onnx"
"""Folder of the graphs."""

SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_quantized"}
"""Ending of a graph's name by precision, as transformers.js has them."""

GRAPHS = {"both": "model", "text": "text_model", "image": "vision_model"}
"""Name of a graph by what it holds."""

TEACHER_EMBEDS = "teacher_embeds"
"""Output of each tower: (B, E) float32 of norm 1 in the teacher's space, if there is a map to it."""


def kinds_of(checkpoint: Checkpoint) -> list[str]:
    """Return the keys of GRAPHS that a checkpoint has: of a tower alone, that one."""
    if checkpoint.has_image and checkpoint.has_text:
        return list(GRAPHS)
    return ["image" if checkpoint.has_image else "text"]


class OnnxStudent:
    """Runs the graphs of one precision, on the CPU."""

    def __init__(self, folder: Path, precision: str) -> None:
        """Load the tokenizer, and the graphs of the towers that there are.

        Args:
            folder: has config.json, tokenizer.json, preprocessor_config.json, export.json, onnx/.
            precision: one of SUFFIXES.
        """
        from onnxruntime import InferenceSession
        from tokenizers import Tokenizer

        self._checkpoint = resolve_checkpoint(str(folder), has_weights=False, needed=())
        if self._checkpoint.has_text:
            self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._sessions: dict[str, Any] = {
            kind: InferenceSession(
                folder / FOLDER / f"{GRAPHS[kind]}{SUFFIXES[precision]}.onnx",
                providers=["CPUExecutionProvider"],
            )
            for kind in kinds_of(self._checkpoint)
        }
        self.logit: tuple[float, float] | None = None
        if "both" in self._sessions:
            facts = json.loads((folder / "export.json").read_text("utf-8"))
            self.logit = (float(np.exp(facts["logit_scale"])), float(facts["logit_bias"]))

    def clean(self, text: str) -> str:
        """Return the text: nothing is done to it before the tokenizer."""
        return text

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, as tokenizer.json gives them without any further setting."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    def embed_images(
        self,
        pixels_B: NDArray[np.uint8],
        grids_B2: NDArray[np.int64] | None,
    ) -> list[NDArray[np.float32]]:
        """Return image_embeds and, if there is a map, teacher_embeds; arguments as in image_inputs."""
        inputs = image_inputs(self._checkpoint, pixels_B, grids_B2)
        return self._run("image", "image_embeds", inputs)

    def embed_texts(self, texts: list[str]) -> list[NDArray[np.float32]]:
        """Return text_embeds and, if there is a map, teacher_embeds."""
        ids_BL = np.array(self.token_ids(texts), np.int64)
        return self._run("text", "text_embeds", {"input_ids": ids_BL})

    def _run(self, kind: str, output: str, inputs: Any) -> list[NDArray[np.float32]]:
        session = self._sessions[kind]
        there = {value.name for value in session.get_outputs()}
        return session.run([output, *({TEACHER_EMBEDS} & there)], inputs)

    def logits(
        self, pixels_B: NDArray[np.uint8], grids_B2: NDArray[np.int64] | None, texts: list[str]
    ) -> NDArray[np.float32]:
        """Return the logits of each image with each text, by the graph of both towers."""
        inputs = image_inputs(self._checkpoint, pixels_B, grids_B2)
        inputs["input_ids"] = np.array(self.token_ids(texts), np.int64)
        return self._sessions["both"].run(["logits_per_image"], inputs)[0]


def image_inputs(
    checkpoint: Checkpoint, pixels_B: NDArray[np.uint8], grids_B2: NDArray[np.int64] | None
) -> dict[str, NDArray[Any]]:
    """Return the inputs of an image graph.

    Args:
        checkpoint: has rescale factor, mean and std.
        pixels_B: (B, H, W, C) uint8 RGB; for NaFlex (B, N, P).
        grids_B2: (B, 2) rows and columns of patches; None for a fixed resolution.
    """
    mean, std = (
        np.array(values, np.float32) for values in (checkpoint.image_mean, checkpoint.image_std)
    )
    colours = pixels_B.reshape(*pixels_B.shape[:2], -1, 3).astype(np.float32)
    normalised = (colours * np.float32(checkpoint.rescale_factor) - mean) / std
    if not isinstance(checkpoint.image, NaflexRecipe):
        return {"pixel_values": np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))}
    assert grids_B2 is not None
    num_patches_B1 = grids_B2.prod(axis=1)[:, None]
    return {
        "pixel_values": normalised.reshape(pixels_B.shape),
        "pixel_attention_mask": (np.arange(pixels_B.shape[1]) < num_patches_B1).astype(np.int32),
        "spatial_shapes": grids_B2,
    }
