"""A SigLIP or SigLIP 2 checkpoint as a live teacher."""

import gc
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from ...siglip import (
    Checkpoint,
    NaflexRecipe,
    PatchPooling,
    TextTokenizer,
    compile_layers,
    embed_hidden_states,
    embed_image_patches,
    embed_image_pixels,
    embed_token_ids,
    is_out_of_memory,
    load_model,
    logit_scale_and_bias,
    resolve_compute_dtype,
    resolve_device,
    uncompiled,
)
from .batch_size import CPU_BATCH_SIZES, fastest_batch_size, time_fastest
from .teacher import OutOfMemory, Teacher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

# Shape letters in this file:
#     B = batch, H, W = pixels, C = 3 colours, N = patches, P = values of a patch, L = text tokens,
#     D = embed_dim, W = width of the hidden states.

_T = TypeVar("_T")


def load_teacher(checkpoint: Checkpoint, device: str, dtype: str) -> Teacher:
    """Return a live teacher."""
    return SiglipTeacher(checkpoint, device=device, compute_dtype=dtype)


class SiglipTeacher:
    """A SigLIP or SigLIP 2 checkpoint on a device.

    On CUDA, batches are copied from pinned memory and computed asynchronously, so that the caller can
    prepare the next one meanwhile; elsewhere the work is done before the call returns.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, device: str = "auto", compute_dtype: str = "auto"
    ) -> None:
        """Load the model.

        Args:
            checkpoint: from resolve_checkpoint.
            device: auto (cuda, else mps, else cpu), or a name such as cpu, cuda, cuda:1, mps.
            compute_dtype: auto, or one of COMPUTE_DTYPES; see resolve_compute_dtype.

        Raises:
            SettingError: this machine has no such device, or cannot compute in this dtype.
            CheckpointError: the checkpoint is damaged.
        """
        self.checkpoint = checkpoint
        self.device = resolve_device(device)
        self.compute_dtype = resolve_compute_dtype(checkpoint, self.device, compute_dtype)
        self.embed_dim = checkpoint.embed_dim
        self.image = checkpoint.image
        self.patches: PatchPooling | None = None
        self.logit_scale, self.logit_bias = logit_scale_and_bias(checkpoint)
        self._tokenizer = TextTokenizer(checkpoint)  # before the weights: it fails faster
        self._model = load_model(checkpoint, device=self.device, compute_dtype=self.compute_dtype)

    def embed_images(self, pixels_BHWC: "NDArray[np.uint8]") -> Callable[[], "NDArray[np.float32]"]:
        """Start embedding (B, H, W, 3) pixels; see Teacher."""

        def forward(pixels_BHWC: "Tensor") -> "Tensor":
            return embed_image_pixels(
                self._model,
                self.checkpoint,
                pixels_BHWC,
                compute_dtype=self.compute_dtype,
                patches=self.patches,
            )

        return self._start([pixels_BHWC], forward)

    def embed_patches(
        self, patches_BNP: "NDArray[np.uint8]", grids_B2: "NDArray[np.int64]"
    ) -> Callable[[], "NDArray[np.float32]"]:
        """Start embedding (B, N, P) patches; see Teacher. A batch without padding needs no mask."""
        import numpy as np

        N = patches_BNP.shape[1]
        is_patch_BN = np.arange(N) < grids_B2.prod(axis=1)[:, None]
        grids = [(int(rows), int(columns)) for rows, columns in grids_B2]

        def forward(patches_BNP: "Tensor", mask_BN: "Tensor | None" = None) -> "Tensor":
            return embed_image_patches(
                self._model,
                self.checkpoint,
                patches_BNP,
                grids,
                mask_BN,
                compute_dtype=self.compute_dtype,
                patches=self.patches,
            )

        inputs = [patches_BNP] if is_patch_BN.all() else [patches_BNP, is_patch_BN]
        return self._start(inputs, forward)

    def embed_cells(self, states_CW: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Return unit rows of hidden states; see Teacher."""

        def forward(states_CW: "Tensor") -> "Tensor":
            return embed_hidden_states(self._model, states_CW, compute_dtype=self.compute_dtype)

        return self._start([states_CW], forward)()

    def embed_texts(self, texts: Sequence[str]) -> Callable[[], "NDArray[np.float32]"]:
        """Start embedding B texts; see Teacher."""

        def forward(ids_BL: "Tensor") -> "Tensor":
            return embed_token_ids(self._model, ids_BL, compute_dtype=self.compute_dtype)

        return self._start([self._tokenizer(list(texts))], forward)

    def provenance(self) -> dict[str, Any]:
        """Return versions, device and origin; a build warns if they change."""
        import PIL
        import tokenizers
        import torch

        return {
            "teacher": self.checkpoint.given,
            "revision": self.checkpoint.revision,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "tokenizers": tokenizers.__version__,
            "pillow": PIL.__version__,
            "device": self.device.partition(":")[0],  # without the number of the GPU
            "device_name": _device_name(self.device),
            "num_threads": torch.get_num_threads(),
        }

    def compile(self) -> None:
        """Compile the encoder layers on their first forward pass, for each batch size once."""
        compile_layers(self._model, is_dynamic=isinstance(self.image, NaflexRecipe))

    def auto_batch_size(self) -> tuple[int, int]:
        """Return (images, texts): on CUDA the fastest powers of two, else fixed numbers.

        It is measured without compiling: each size would take a graph.
        """
        if not self.device.startswith("cuda"):
            return CPU_BATCH_SIZES
        import numpy as np

        def time_images(size: int) -> float:
            pixels = np.zeros((size, *self.image.view_shape), np.uint8)
            if not isinstance(self.image, NaflexRecipe):
                return time_fastest(lambda: self.embed_images(pixels)())
            grids_B2 = np.tile([1, self.image.max_num_patches], (size, 1))
            return time_fastest(lambda: self.embed_patches(pixels, grids_B2)())

        def time_texts(size: int) -> float:
            return time_fastest(lambda: self.embed_texts(["a photo"] * size)())

        with uncompiled():
            return fastest_batch_size(time_images), fastest_batch_size(time_texts)

    def _start(
        self, inputs: "Sequence[NDArray[Any]]", forward: Callable[..., "Tensor"]
    ) -> Callable[[], "NDArray[np.float32]"]:
        """Copy arrays to the device and start ``forward`` on them."""
        import torch

        is_cuda = self.device.startswith("cuda")

        def on_host(array: "NDArray[Any]") -> "Tensor":
            # torch's pool reuses a pinned block only after its copy is done.
            dtype = getattr(torch, array.dtype.name)
            host = torch.empty(array.shape, dtype=dtype, pin_memory=is_cuda)
            host.numpy()[...] = array  # any strides, also read-only
            return host

        def start() -> "tuple[Tensor, torch.cuda.Event | None]":
            hosts = [on_host(array) for array in inputs]
            if not is_cuda:
                return forward(*(host.to(self.device) for host in hosts)).cpu(), None
            with torch.cuda.device(self.device):
                rows_BD = forward(*(host.to(self.device, non_blocking=True) for host in hosts))
                result_BD = torch.empty(rows_BD.shape, dtype=rows_BD.dtype, pin_memory=True)
                result_BD.copy_(rows_BD, non_blocking=True)
                done = torch.cuda.Event()
                done.record()
            return result_BD, done

        result_BD, done = self._or_out_of_memory(start)

        def wait() -> "NDArray[np.float32]":
            if done is not None:
                self._or_out_of_memory(done.synchronize)
            return result_BD.numpy().copy()  # a copy, so that the pinned block is free again

        return wait

    def _or_out_of_memory(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not is_out_of_memory(error):
                raise
            reason = (str(error) or "out of memory").splitlines()[0]
        # Outside the handler: the traceback, and with it the tensors of the failed forward, is gone.
        gc.collect()
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()
        raise OutOfMemory(f"a batch does not fit on {self.device}: {reason}")


def _device_name(device: str) -> str:
    import platform

    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
