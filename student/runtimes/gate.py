"""The check of exported files: on held-out pictures and captions they must compute what the student does.

Shape letters in this file: N = images, M = texts, D = embedding width, B = batch.
"""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import ExportError
from ...formatting import one_line
from ...siglip import Checkpoint, TextTokenizer
from ..evaluation.metrics import match_entropy, soft_loss_excess
from ..evaluation.retrieval import retrieval
from ..export.programs import PROBES
from .held_out import HeldOut, Outputs


class ExportedStudent(Protocol):
    """Exported files in their runtime."""

    logit: tuple[float, float]
    """(scale, bias) stored beside the towers, the scale exponentiated."""

    def clean(self, text: str) -> str:
        """Return what the runtime makes of a text before its tokenizer; no file can change that."""
        ...

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text."""
        ...

    def embed_images(
        self, pixels_B: NDArray[np.uint8], grids_B2: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        """Return (B, D) unit rows of decoded pictures."""
        ...

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Return (B, D) unit rows."""
        ...

    def logits(
        self, pixels_B: NDArray[np.uint8], grids_B2: NDArray[np.int64] | None, texts: list[str]
    ) -> NDArray[np.float32]:
        """Return the logits of each image with each text, computed by the file itself."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is accepted of exported files."""

    cosine: float
    """Least cosine of any image, or text, to the student's."""

    logit_error: float
    """Largest difference of any logit."""

    recall_loss: float
    """Largest loss of R@1, 0 to 1; one query may always be lost, to rounding."""

    kl_share: float
    """Largest KL divergence from the student's probabilities, as a share of their entropy."""


LIMITS = {
    "float32": Limits(cosine=0.9999, logit_error=0.02, recall_loss=0.0, kl_share=1e-4),
    "float16": Limits(cosine=0.999, logit_error=0.5, recall_loss=0.01, kl_share=1e-3),
    "int8": Limits(cosine=0.98, logit_error=3.0, recall_loss=0.02, kl_share=0.05),
    "open-clip": Limits(cosine=0.999, logit_error=0.5, recall_loss=0.01, kl_share=1e-3),
}
"""By precision of ONNX graphs, and for open_clip. Cosines are multiplied by about 115 in a logit: an error of
.02 is 2e-4 of cosine, a hundred times the rounding of float32. float16 rounds 8,000 times as coarsely as
float32. Some image towers of open_clip have the exact GELU, where SigLIP 2 has its approximation by tanh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How exported files differ from the student."""

    images: int
    texts: int
    image_cosine: float
    """Least cosine of an image's embedding to the student's."""

    text_cosine: float
    mean_image_cosine: float
    mean_text_cosine: float
    logit_error: float
    """Largest difference of a logit."""

    image_to_text: tuple[float, float]
    """R@1 of the student and of the files."""

    text_to_image: tuple[float, float]
    kl_share: float
    """KL divergence from the student's probabilities of a match, as a share of their entropy."""

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return asdict(self)


def check_parity(
    exported: ExportedStudent,
    student: Outputs,
    checkpoint: Checkpoint,
    held_out: HeldOut,
    *,
    limits: Limits,
    what: str,
) -> Parity:
    """Return how exported files differ from the student; raise if they differ too much.

    Args:
        exported: the files in their runtime.
        student: what PyTorch computes from ``held_out``.
        checkpoint: the student, whose tokens must be those of the files.
        held_out: pictures and captions.
        limits: what is accepted.
        what: name of the files for the message.

    Raises:
        ExportError: they differ too much; the message has the number and its limit.
    """
    _check_tokens(exported, checkpoint, held_out.texts, what)
    images_ND = np.concatenate([exported.embed_images(*b) for b in held_out.image_batches()])
    texts_MD = np.concatenate([exported.embed_texts(b) for b in held_out.text_batches()])
    found = Outputs(images_ND=images_ND, texts_MD=texts_MD, logit=exported.logit)
    parity = _parity(exported, found, student, held_out)
    _check(parity, limits, what)
    return parity


def _check_tokens(
    exported: ExportedStudent, checkpoint: Checkpoint, captions: list[str], what: str
) -> None:
    texts = [*PROBES, *captions]
    expected = TextTokenizer(checkpoint)([exported.clean(text) for text in texts]).tolist()
    for text, found, wanted in zip(texts, exported.token_ids(texts), expected, strict=True):
        if found != wanted:
            first = next((i for i, w in enumerate(wanted) if found[i : i + 1] != [w]), len(wanted))
            raise ExportError(
                f"{what} is not kept: its tokenizer gives {len(found)} ids for "
                f"{one_line(text)[:40]!r}, the student's {len(wanted)}, and they differ from id {first} on "
                "(lowercase, truncation and padding belong to the tokenizer)"
            )


def _parity(
    exported: ExportedStudent, found: Outputs, student: Outputs, held_out: HeldOut
) -> Parity:
    image_N = _cosines(found.images_ND, student.images_ND)
    text_M = _cosines(found.texts_MD, student.texts_MD)
    recalls = [
        retrieval(
            o.images_ND, o.texts_MD, held_out.image_P, held_out.text_P, held_out.picture_N
        ).rates()
        for o in (student, found)
    ]
    one_way, other_way = (
        (recalls[0][way]["1"], recalls[1][way]["1"]) for way in ("image_to_text", "text_to_image")
    )
    pair = (student.images_ND, student.texts_MD)
    excess = soft_loss_excess(
        (found.images_ND, found.texts_MD),
        pair,
        student_logit=found.logit,
        teacher_logit=student.logit,
    )
    entropy = match_entropy(*pair, student.logit)
    assert excess is not None
    assert entropy is not None
    return Parity(
        images=len(image_N),
        texts=len(text_M),
        image_cosine=float(image_N.min()),
        text_cosine=float(text_M.min()),
        mean_image_cosine=float(image_N.mean()),
        mean_text_cosine=float(text_M.mean()),
        logit_error=_logit_error(exported, student, held_out),
        image_to_text=one_way,
        text_to_image=other_way,
        kl_share=excess / max(entropy, 1e-12),
    )


def _cosines(a_ND: NDArray[np.float32], b_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (N,) dot products of unit rows; -1 where one is not finite."""
    return np.nan_to_num(np.einsum("nd,nd->n", a_ND, b_ND, dtype=np.float64), nan=-1.0)


def _logit_error(exported: ExportedStudent, student: Outputs, held_out: HeldOut) -> float:
    """Return the largest error; each image meets a batch of texts, and each text a batch of images."""
    images, texts = held_out.image_batches(), held_out.text_batches()
    scale, bias = student.logit
    starts_N = np.cumsum([0, *(len(pixels) for pixels, _ in images)])
    starts_M = np.cumsum([0, *map(len, texts)])
    worst = 0.0
    for i in range(max(len(images), len(texts))):
        a, b = i % len(images), i % len(texts)
        found_BM = exported.logits(*images[a], texts[b]).astype(np.float64)
        x_BD = student.images_ND[starts_N[a] : starts_N[a + 1]].astype(np.float64)
        y_MD = student.texts_MD[starts_M[b] : starts_M[b + 1]].astype(np.float64)
        error = np.abs(found_BM - (scale * x_BD @ y_MD.T + bias)).max()
        worst = max(worst, float(np.nan_to_num(error, nan=np.inf)))
    return worst


def _check(parity: Parity, limits: Limits, what: str) -> None:
    def loss(recall: tuple[float, float], num_queries: int) -> float:
        return recall[0] - recall[1] - 1 / num_queries

    low = limits.cosine
    rows = [
        (
            "cosine of an image to the student's",
            parity.image_cosine,
            parity.image_cosine >= low,
            low,
        ),
        ("cosine of a text to the student's", parity.text_cosine, parity.text_cosine >= low, low),
        (
            "error of a logit",
            parity.logit_error,
            parity.logit_error <= limits.logit_error,
            limits.logit_error,
        ),
        (
            "KL divergence as a share of the entropy",
            parity.kl_share,
            parity.kl_share <= limits.kl_share,
            limits.kl_share,
        ),
        *(
            (
                f"R@1 {name} (the student's is {recall[0]:.4f})",
                recall[1],
                loss(recall, count) <= limits.recall_loss + 1e-9,
                recall[0] - limits.recall_loss,
            )
            for name, recall, count in (
                ("image to text", parity.image_to_text, parity.images),
                ("text to image", parity.text_to_image, parity.texts),
            )
        ),
    ]
    for name, value, is_right, limit in rows:
        if not is_right:
            raise ExportError(
                f"{what} is not kept: {name} is {value:.6g}, the limit {limit:g}, on "
                f"{parity.images:,} held-out images and {parity.texts:,} captions"
            )
