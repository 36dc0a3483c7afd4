"""Batches of a training: pixels of the drawn views, token ids, and the teacher's targets for both.

Shape letters in this file:
    N = images of this rank that could be used    M = different texts of the global batch
    B = images of a piece, V = views of each in a step    L = tokens    E = width of the teacher
"""

import contextlib
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import BuildError, SettingError, TrainError
from ...images.decoder import Decoder
from ...images.image import DecodedBatch, DecodedImage, ImageRef, PixelFormat
from ...images.pixels import DECODES, Decode
from ...siglip import Checkpoint, TextTokenizer, Towers
from ...store.cache import Cache
from ...store.targets.patches import PatchTargets
from ..config import CheckPixels
from .batch import Batch, FillingBatch, PatchCells
from .catalog_index import ImageLookup, TextLookup
from .prefetch import Prefetcher
from .sampler import GlobalBatch, Sampler
from .train_targets import TrainTargets

_PIECE_VIEWS = 256
"""Views decoded at a time: four such pieces are in shared memory, 154 MB at 224 px."""

_OTHER_BYTES = (
    "its bytes are not those the teacher saw; restore the file, or build a cache of the new one"
)

_OTHER_KEPT_BYTES = "its kept pixels are damaged; run siglip2-cache verify"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderConfig:
    """Settings of a loader. Only ``decode`` changes the batches, unless a file changed."""

    num_workers: int = 2
    """Decoding processes; 0: decode in a thread of this process."""

    check_pixels: CheckPixels = "always"
    """When an image's bytes are compared with those the teacher saw, by SHA-256."""

    decode: Decode = "exact"
    """How images are decoded before they are resized."""

    prefetch: int = 2
    """Batches ready ahead of the training, at least 1; one more is being made."""

    sample_timeout_s: float = 60.0
    """Seconds after which an image that is not read and decoded is skipped."""

    def __post_init__(self) -> None:
        if not 0 <= self.num_workers <= 1024:
            raise SettingError(f"decode_workers must be 0 to 1024, got {self.num_workers}")
        if self.check_pixels not in get_args(CheckPixels):
            raise SettingError(
                f"check_pixels {self.check_pixels!r} is not one of {', '.join(get_args(CheckPixels))}"
            )
        if self.decode not in DECODES:
            raise SettingError(f"decode {self.decode!r} is not one of {', '.join(DECODES)}")
        if self.prefetch < 1:
            raise SettingError(f"prefetch must be at least 1, got {self.prefetch}")
        if not self.sample_timeout_s > 0:
            raise SettingError(f"sample_timeout must be above 0, got {self.sample_timeout_s}")


class Loader:
    """Makes the batches of a sampler, ahead of the training.

    A batch does not depend on the number of workers or on the first step. Close the loader, or use it in a
    ``with``, to end its thread and its workers.
    """

    def __init__(
        self,
        cache: Cache,
        targets: Sequence[TrainTargets],
        sampler: Sampler,
        images: ImageLookup,
        checkpoint: Checkpoint,
        *,
        config: LoaderConfig | None = None,
        towers: Towers = "both",
        device: str | torch.device = "cpu",
        patch_targets: PatchTargets | None = None,
    ) -> None:
        """Read the texts.

        Args:
            cache: the cache.
            targets: those of each teacher, for the sampler's corpus.
            sampler: draws the batches.
            images: files of the sampler's corpus.
            checkpoint: the student, whose preprocessing makes the pixels and whose tokenizer makes the ids.
            config: settings.
            towers: ``image``: make no token ids; ``text``: read no pixels.
            device: where the training copies the batches.
            patch_targets: those of the first teacher; None: they are not read.

        Raises:
            CheckpointError: the student's tokenizer does not load.
        """
        self._sampler, self._images, self._checkpoint = sampler, images, checkpoint
        self._config = config or LoaderConfig()
        self._targets = targets
        self._patch_targets = patch_targets
        self._tokenizer = TextTokenizer(checkpoint) if towers != "image" else None
        self._texts = TextLookup(cache, sampler.corpus) if towers != "image" else None
        self._make = self._make_without_pixels if towers == "text" else self._make_with_pixels
        self._pin = torch.device(device).type == "cuda"
        self._open: set[Prefetcher[Batch]] = set()

    def batches(self, first_step: int = 0, end_step: int | None = None) -> Generator[Batch]:
        """Yield the batches from a step, counted from 0, to below ``end_step``; None: without end.

        Raises:
            TrainError: the workers cannot be started.
        """
        ahead = Prefetcher(
            lambda stopping: self._make(first_step, end_step, stopping),
            num_ahead=self._config.prefetch,
            name="train-batches",
        )
        self._open.add(ahead)
        made = iter(ahead)
        try:
            while True:
                started = time.perf_counter()
                batch = next(made, None)
                if batch is None:
                    return
                batch.wait_s = time.perf_counter() - started
                yield batch
                del batch
        finally:
            ahead.close()
            self._open.discard(ahead)

    def close(self) -> None:
        """End the thread, the workers and batches()."""
        for ahead in list(self._open):
            ahead.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _make_without_pixels(
        self, first_step: int, end_step: int | None, stopping: threading.Event
    ) -> Generator[Batch]:
        """Yield batches of texts and targets; runs in the thread."""
        keep = np.arange(self._sampler.images_per_rank)
        step = first_step
        while (end_step is None or step < end_step) and not stopping.is_set():
            yield self._finish(self._sampler.global_batch(step), keep)
            step += 1

    def _make_with_pixels(
        self, first_step: int, end_step: int | None, stopping: threading.Event
    ) -> Generator[Batch]:
        """Yield batches; runs in the thread. Decoding does not pause between steps."""
        views_per_step = self._sampler.views_per_step
        decoder = Decoder(
            PixelFormat(
                num_views=views_per_step,
                recipe=self._checkpoint.image,
                decode=self._config.decode,
            ),
            batch_images=self._ids_per_piece,
            num_workers=self._config.num_workers,
            timeout_s=self._config.sample_timeout_s,
            open_groups=self._sampler.open_groups,
        )
        pieces = decoder.decode(self._pieces(first_step, end_step))
        with contextlib.closing(pieces), _as_train_error():
            filling: FillingBatch | None = None
            for piece in pieces:
                if stopping.is_set():
                    return
                global_batch: GlobalBatch = piece.tag
                if filling is None:
                    filling = FillingBatch(global_batch, self._sampler, self._checkpoint)
                filling.add(piece, self._faults(global_batch, filling.num_seen, piece))
                if filling.is_full:
                    keep = np.flatnonzero(filling.is_used)
                    batch = self._finish(global_batch, keep)
                    batch.pixels_N, batch.grids_N2 = filling.pixels[: len(keep)], filling.grids
                    batch.skipped = self._name_skipped(filling)
                    yield batch
                    filling = None

    @property
    def _ids_per_piece(self) -> int:
        views_per_step = self._sampler.views_per_step
        own = self._sampler.images_per_rank // views_per_step
        return min(own, max(1, _PIECE_VIEWS // views_per_step))

    def _pieces(
        self, first_step: int, end_step: int | None
    ) -> Iterator[tuple[GlobalBatch, list[ImageRef]]]:
        """Yield (global batch, references) of this rank's images, some at a time."""
        size, views_per_step = self._ids_per_piece, self._sampler.views_per_step
        step = first_step
        while end_step is None or step < end_step:
            global_batch = self._sampler.global_batch(step)
            ids = global_batch.positions_N[self._sampler.rank_slice][::views_per_step]
            views = global_batch.views_N[self._sampler.rank_slice].reshape(-1, views_per_step)
            for start in range(0, len(ids), size):
                yield (
                    global_batch,
                    self._images.refs(ids[start : start + size], views[start : start + size]),
                )
            step += 1

    def _faults(
        self, global_batch: GlobalBatch, num_seen: int, piece: DecodedBatch
    ) -> list[str | None]:
        """Return why each image of a decoded piece cannot be used; None if it can."""
        corpus, check = self._sampler.corpus, self._config.check_pixels
        is_checked = check == "always" or (check == "first-epoch" and global_batch.epoch == 0)
        V = self._sampler.views_per_step
        own = global_batch.positions_N[self._sampler.rank_slice][
            num_seen : num_seen + len(piece.refs) * V : V
        ]
        seen_B = corpus.sha256_N[own]

        def fault_of(ref: ImageRef, image: DecodedImage, seen: NDArray[np.uint8]) -> str | None:
            expected = ref.sha256 or seen.tobytes()
            if image.reason is None and is_checked and image.sha256 != expected:
                return _OTHER_BYTES if ref.sha256 is None else _OTHER_KEPT_BYTES
            return image.reason

        return list(map(fault_of, piece.refs, piece.images, seen_B))

    def _finish(self, global_batch: GlobalBatch, keep: NDArray[np.int64]) -> Batch:
        """Return the targets and texts of a batch, for some of this rank's images, without their pixels."""
        own = self._sampler.rank_slice
        positions_N, views_N = global_batch.positions_N[own][keep], global_batch.views_N[own][keep]
        started = time.perf_counter()
        rows_N, text_rows_M = (
            self._sampler.corpus.rows_N[positions_N],
            global_batch.global_text_rows_M,
        )
        targets = [each.read(positions_N, rows_N, views_N, text_rows_M) for each in self._targets]
        patches = None
        if self._patch_targets is not None:
            found = self._patch_targets.read(rows_N, views_N)
            patches = PatchCells(self._tensor(found.values_VCP), found.grids_V2)
        read_targets_s = time.perf_counter() - started
        return Batch(
            step=global_batch.step,
            epoch=global_batch.epoch,
            positions_N=positions_N,
            views_N=views_N,
            pixels_N=None,
            grids_N2=None,
            caption_NC=global_batch.caption_NC[own][keep],
            text_rows_M=text_rows_M,
            text_bounds=global_batch.text_bounds,
            ids_ML=self._token_ids(global_batch),
            targets=[each.pinned() if self._pin else each for each in targets],
            patches=patches,
            skipped=[],
            read_targets_s=read_targets_s,
        )

    def _name_skipped(self, filling: "FillingBatch") -> list[tuple[str, str]]:
        if not filling.faults:
            return []
        keys = self._images.keys(list(filling.faults))
        return list(zip(keys, filling.faults.values(), strict=True))

    def _token_ids(self, global_batch: GlobalBatch) -> Tensor | None:
        if self._tokenizer is None or self._texts is None:
            return None
        first, end = global_batch.text_bounds[self._sampler.rank : self._sampler.rank + 2]
        own = global_batch.global_text_rows_M[first:end]
        return self._tensor(self._tokenizer(self._texts.texts(own)))

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.pin_memory() if self._pin else tensor


@contextlib.contextmanager
def _as_train_error() -> Generator[None]:
    try:
        yield
    except BuildError as error:  # the decoder's
        raise TrainError(str(error)) from error
