"""The check of exported files: on held-out pictures and captions they must compute what the student does.

One tower alone has no logits and no partner: of it only cosines are compared.

Shape letters in this file:
    N = images, M = texts, D = embedding width, E = that of the teacher, B = batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import ExportError
from ...formatting import one_line
from ...siglip import Checkpoint, TextTokenizer
from ..evaluation.embeddings import Embeddings
from ..evaluation.metrics import (
    finite_mean,
    index_overlap,
    match_entropy,
    row_cosines,
    soft_loss_excess,
)
from ..evaluation.retrieval import retrieval
from ..export.programs import PROBES
from .held_out import HeldOut, Outputs


class ExportedStudent(Protocol):
    """Exported files in their runtime."""

    logit: tuple[float, float] | None
    """(scale, bias) stored beside the towers, the scale exponentiated; None: of one tower alone."""

    def clean(self, text: str) -> str:
        """Return what the runtime makes of a text before its tokenizer; no file can change that."""
        ...

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text."""
        ...

    def embed_images(
        self, pixels_B: NDArray[np.uint8], grids_B2: NDArray[np.int64] | None
    ) -> Sequence[NDArray[np.float32]]:
        """Return (B, D) unit rows of decoded pictures, and with a map (B, E) in the teacher's space."""
        ...

    def embed_texts(self, texts: list[str]) -> Sequence[NDArray[np.float32]]:
        """Return (B, D) unit rows, and with a map (B, E) in the teacher's space."""
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
class TeacherIndex:
    """What the files' queries find in an index of the teacher's embeddings of the images."""

    cosine: float | None
    """Mean cosine to the teacher's embedding of the same image or text."""

    neighbour_overlap: tuple[float | None, float | None]
    """Share of the 10 images that the teacher's query finds first, recall@10, of the student and of the
    files; None with too few images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How exported files differ from the student; None: it lacks the tower, or the comparison is not made."""

    images: int
    texts: int
    is_held_out: bool | None = None
    """False if the images were not held out of the training; else None."""

    image_cosine: float | None = None
    """Least cosine of an image's embedding to the student's, also in the teacher's space."""

    text_cosine: float | None = None
    mean_image_cosine: float | None = None
    mean_text_cosine: float | None = None
    logit_error: float | None = None
    """Largest difference of a logit."""

    image_to_text: tuple[float, float] | None = None
    """R@1 of the student and of the files."""

    text_to_image: tuple[float, float] | None = None
    kl_share: float | None = None
    """KL divergence from the student's probabilities of a match, as a share of their entropy."""

    image_in_teacher_index: TeacherIndex | None = None
    text_in_teacher_index: TeacherIndex | None = None

    @property
    def compared(self) -> str:
        """What was compared, in words."""
        which = "held-out images" if self.is_held_out is None else "images (none is held out)"
        images = [f"{self.images:,} {which}"] * bool(self.images)
        captions = [f"{self.texts:,} captions"] * bool(self.texts)
        return " and ".join([*images, *captions])

    def as_json(self) -> dict[str, Any]:
        """Return the numbers that there are, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def parity_cells(parity: Parity) -> dict[str, str]:
    """Return the numbers of a table by their headings, without those of a tower that is not there."""
    found: dict[str, str] = {}
    for heading, value, form in (
        ("image cosine", parity.image_cosine, ".6f"),
        ("text cosine", parity.text_cosine, ".6f"),
        ("logit error", parity.logit_error, ".4f"),
        ("R@1 i2t", parity.image_to_text, ".4f"),
        ("R@1 t2i", parity.text_to_image, ".4f"),
        ("KL/entropy", parity.kl_share, ".2e"),
    ):
        if isinstance(value, tuple):
            found[heading] = f"{value[1]:{form}} of {value[0]:{form}}"
        elif value is not None:
            found[heading] = format(value, form)
    return found


def teacher_index_lines(parities: Mapping[str, Parity]) -> list[str]:
    """Return what queries find in an index of the teacher's images, a line a side of each precision."""
    lines = [
        f"  {precision}, {name}: {_shown(index.neighbour_overlap[1])} of the 10 nearest (PyTorch "
        f"{_shown(index.neighbour_overlap[0])}), cosine to the teacher {_shown(index.cosine)}"
        for precision, parity in parities.items()
        for name, index in (
            ("images", parity.image_in_teacher_index),
            ("texts", parity.text_in_teacher_index),
        )
        if index is not None
    ]
    heading = (
        "found in an index of the teacher's images, of what the teacher's own queries find there:"
    )
    return [heading, *lines] if lines else []


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


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
    if checkpoint.has_text:
        _check_tokens(exported, checkpoint, held_out.texts, what)
    images = [exported.embed_images(*batch) for batch in held_out.image_batches()]
    texts = [exported.embed_texts(batch) for batch in held_out.text_batches()]
    found = Outputs(
        images_ND=_rows(images, 0, student.images_ND),
        texts_MD=_rows(texts, 0, student.texts_MD),
        logit=exported.logit,
        mapped=None
        if student.mapped is None
        else (_rows(images, 1, student.mapped[0]), _rows(texts, 1, student.mapped[1])),
    )
    parity = _parity(exported, found, student, held_out)
    _check(parity, limits, what, num_captioned=len(np.unique(held_out.image_P)))
    return parity


def _rows(
    batches: list[Sequence[NDArray[np.float32]]], output: int, of_student: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return one output of all batches; without batches the student's rows, which are none either."""
    return np.concatenate([each[output] for each in batches]) if batches else of_student


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
    numbers: dict[str, Any] = {"images": len(found.images_ND), "texts": len(found.texts_MD)}
    if not held_out.is_held_out:
        numbers["is_held_out"] = False
    for side, name in enumerate(("image", "text")):
        rows = [(o.images_ND, o.texts_MD)[side] for o in (found, student)]
        if len(rows[0]) == 0:
            continue
        cosines = [_cosines(*rows)]
        numbers[f"mean_{name}_cosine"] = float(cosines[0].mean())
        if found.mapped is not None and student.mapped is not None:
            cosines.append(_cosines(found.mapped[side], student.mapped[side]))
        numbers[f"{name}_cosine"] = float(np.concatenate(cosines).min())
        if held_out.teacher is not None:
            index = _teacher_index(side, found, student, held_out.teacher, held_out.picture_N)
            numbers[f"{name}_in_teacher_index"] = index
    if found.logit is not None and student.logit is not None:
        numbers |= _of_pairs(found, student, held_out, found.logit, student.logit)
        numbers["logit_error"] = _logit_error(exported, student, held_out, student.logit)
    return Parity(**numbers)


def _teacher_index(
    side: int,
    found: Outputs,
    student: Outputs,
    teacher: Embeddings,
    picture_N: NDArray[np.int64],
) -> TeacherIndex:
    """Return what queries of a side, 0 of images and 1 of texts, find in an index of the teacher's images."""
    reference = (teacher.images_ND, teacher.texts_MD)[side]
    queries = [outputs.in_teacher_space[side] for outputs in (student, found)]
    own = None if side else (picture_N, picture_N)
    first, second = (
        finite_mean(index_overlap(teacher.images_ND, each, reference, own)) for each in queries
    )
    return TeacherIndex(
        cosine=finite_mean(row_cosines(queries[1], reference)),
        neighbour_overlap=(first, second),
    )


def _of_pairs(
    found: Outputs,
    student: Outputs,
    held_out: HeldOut,
    logit: tuple[float, float],
    student_logit: tuple[float, float],
) -> dict[str, Any]:
    """Return how images and texts match each other."""
    recalls = [
        retrieval(
            o.images_ND, o.texts_MD, held_out.image_P, held_out.text_P, held_out.picture_N
        ).rates()
        for o in (student, found)
    ]
    pair = (student.images_ND, student.texts_MD)
    excess = soft_loss_excess(
        (found.images_ND, found.texts_MD),
        pair,
        student_logit=logit,
        teacher_logit=student_logit,
    )
    entropy = match_entropy(*pair, student_logit)
    assert excess is not None
    assert entropy is not None
    return {
        **{
            way: (recalls[0][way]["1"], recalls[1][way]["1"])
            for way in ("image_to_text", "text_to_image")
        },
        "kl_share": excess / max(entropy, 1e-12),
    }


def _cosines(a_ND: NDArray[np.float32], b_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (N,) dot products of unit rows; -1 where one is not finite."""
    return np.nan_to_num(np.einsum("nd,nd->n", a_ND, b_ND, dtype=np.float64), nan=-1.0)


def _logit_error(
    exported: ExportedStudent, student: Outputs, held_out: HeldOut, logit: tuple[float, float]
) -> float:
    """Return the largest error; each image meets a batch of texts, and each text a batch of images."""
    images, texts = held_out.image_batches(), held_out.text_batches()
    scale, bias = logit
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


def _check(parity: Parity, limits: Limits, what: str, *, num_captioned: int) -> None:
    def lowest(recall: tuple[float, float], num_queries: int) -> float:
        return recall[0] - limits.recall_loss - 1 / num_queries - 1e-9

    rows: list[tuple[str, float, bool, float]] = []
    for name, value in (("an image", parity.image_cosine), ("a text", parity.text_cosine)):
        if value is not None:
            is_right = value >= limits.cosine
            rows.append((f"cosine of {name} to the student's", value, is_right, limits.cosine))
    for name, value, limit in (
        ("error of a logit", parity.logit_error, limits.logit_error),
        ("KL divergence as a share of the entropy", parity.kl_share, limits.kl_share),
    ):
        if value is not None:
            rows.append((name, value, value <= limit, limit))
    for name, recall, count in (
        ("image to text", parity.image_to_text, num_captioned),
        ("text to image", parity.text_to_image, parity.texts),
    ):
        if recall is not None:
            named, limit = f"R@1 {name} (the student's is {recall[0]:.4f})", recall[0]
            is_right = recall[1] >= lowest(recall, count)
            rows.append((named, recall[1], is_right, limit - limits.recall_loss))
    for name, value, is_right, limit in rows:
        if not is_right:
            raise ExportError(
                f"{what} is not kept: {name} is {value:.6g}, the limit {limit:g}, on {parity.compared}"
            )
