"""What a build needs of a teacher: pixels and texts in, unit embeddings out."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import BuildError
from ...siglip import Checkpoint, ImageRecipe, PatchPooling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Shape letters in this file:
#     B = batch, H, W = pixels, C = 3 colours, N = patches, P = values of a patch, D = embed_dim,
#     W = width of the hidden states.


class OutOfMemory(BuildError):  # noqa: N818 - it asks for a smaller batch before it is an error
    """A batch did not fit in memory; the memory has been freed, and a smaller batch may fit."""


class Teacher(Protocol):
    """A live teacher; tests use a fake one."""

    patches: PatchPooling | None
    """Patch targets that are made with the embeddings of images: their values follow those of each row."""

    @property
    def embed_dim(self) -> int:
        """Width of both embeddings."""
        ...

    @property
    def image(self) -> ImageRecipe:
        """The pixels it takes, which also decides between embed_images and embed_patches."""
        ...

    @property
    def logit_scale(self) -> float:
        """Stored parameter of the checkpoint, a logarithm."""
        ...

    @property
    def logit_bias(self) -> float:
        """Stored parameter of the checkpoint."""
        ...

    @property
    def device(self) -> str:
        """Device it runs on: cpu, cuda, cuda:1 or mps."""
        ...

    def embed_images(self, pixels_BHWC: "NDArray[np.uint8]") -> Callable[[], "NDArray[np.float32]"]:
        """Start embedding RGB pixels; return a function that waits and returns (B, D) unit rows.

        With ``patches`` the rows go on with the values of these.

        Raises:
            OutOfMemory: the batch is too large; raised here or by the returned function.
        """
        ...

    def embed_patches(
        self, patches_BNP: "NDArray[np.uint8]", grids_B2: "NDArray[np.int64]"
    ) -> Callable[[], "NDArray[np.float32]"]:
        """Start embedding views cut into patches, for a NaFlex teacher; otherwise like embed_images.

        Args:
            patches_BNP: RGB patches; N is the largest number of patches in the batch.
            grids_B2: rows and columns of patches of each view; patches beyond these are ignored.
        """
        ...

    def embed_cells(self, states_CW: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Return (C, D) unit rows of hidden states, each as if it were the only patch of an image."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Callable[[], "NDArray[np.float32]"]:
        """Start embedding texts; otherwise like embed_images."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Return versions and device, which may differ between runs of one build."""
        ...

    def auto_batch_size(self) -> tuple[int, int]:
        """Return the best number of images, and of texts, in a batch on this device."""
        ...

    def compile(self) -> None:
        """Let torch.compile run the encoder layers from here on."""
        ...


TeacherFactory = Callable[[Checkpoint, str, str], Teacher]
"""(checkpoint, device, dtype) -> teacher. Pickled if workers are separate processes."""


def with_compile(make_teacher: TeacherFactory, is_compiled: bool | None) -> TeacherFactory:
    """Return what loads a teacher and, if it is to be compiled, compiles it."""
    return partial(_load_compiled, make_teacher) if is_compiled else make_teacher


def _load_compiled(
    make_teacher: TeacherFactory, checkpoint: Checkpoint, device: str, dtype: str
) -> Teacher:
    teacher = make_teacher(checkpoint, device, dtype)
    teacher.compile()
    return teacher
