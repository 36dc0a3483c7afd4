"""Loading a teacher of a cache again: the same checkpoint, run with the same settings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import SettingError
from ...images.image import DecodedBatch, DecodedImage, ImageRef, PixelFormat, decode_image
from ...images.image_bytes import ImageLocation
from ...siglip import Checkpoint, resolve_checkpoint
from ...store.cache import Cache
from ...store.format.teacher_record import TeacherRecord
from ...store.format.views import WHOLE_IMAGE
from .embedder import Embedder, is_unit, split_images
from .identity import (
    TeacherChoices,
    identity_differences,
    recorded_compiled,
    recorded_decode,
    recorded_dtype,
    restore_checkpoint,
    restore_transparency,
)
from .siglip_teacher import load_teacher
from .teacher import TeacherFactory, with_compile


def find_checkpoint(
    cache: Cache, *, teacher: str | None = None, checkpoint: str | None = None
) -> Checkpoint:
    """Return the checkpoint of a teacher of a cache, with its settings; load no model.

    Raises:
        CheckpointError: it is not found, or damaged.
        SettingError: the checkpoint found is a different one, or the teacher was imported.
    """
    record = cache.teacher(teacher)
    if record.is_imported:
        raise SettingError(
            f"teacher {record.name!r} of {cache.root} was imported: there is no live teacher to embed "
            "anything again, or anything new"
        )
    if checkpoint is None:
        found = resolve_checkpoint(record.source, revision=record.revision)
    else:
        found = resolve_checkpoint(checkpoint)
    found = restore_transparency(found, record)
    differences = identity_differences(record, found, TeacherChoices())
    if differences:
        raise SettingError(
            f"{found.given} is not the checkpoint that teacher {record.name!r} of {cache.root} was "
            f"made with: {'; '.join(differences)}; give the right one with --checkpoint"
        )
    return restore_checkpoint(found, record)


class LiveTeacher:
    """A loaded teacher with the batch sizes and the pixel format of its cache."""

    def __init__(
        self,
        cache: Cache,
        *,
        teacher: str | None = None,
        checkpoint: str | None = None,
        device: str = "auto",
        make_teacher: TeacherFactory = load_teacher,
    ) -> None:
        """Load a teacher of a cache.

        Raises:
            CheckpointError: the checkpoint is not found, or damaged.
            SettingError: it is not the one that the cache was made with.
        """
        self.record: TeacherRecord = cache.teacher(teacher)
        found = find_checkpoint(cache, teacher=teacher, checkpoint=checkpoint)
        load = with_compile(make_teacher, recorded_compiled(self.record))
        live = load(found, device, recorded_dtype(self.record))
        self.recipe = live.image
        batch_size = self.record.batch_size
        _, image_batch = split_images(live.image, batch_size["image"], cache.num_views)
        self.embedder = Embedder(live, image_batch, batch_size["text"])

    def pixel_format(self, num_views: int) -> PixelFormat:
        """Return the pixel format of this teacher, decoding as for the cache."""
        return PixelFormat(
            num_views=num_views, recipe=self.recipe, decode=recorded_decode(self.record)
        )

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Return (len(texts), embed_dim) float16 unit rows.

        Raises:
            SettingError: the teacher has no finite embedding for a text.
        """
        rows_BD = self.embedder.start_texts(texts)()
        _check_unit(rows_BD, [repr(text) for text in texts])
        return rows_BD

    def embed_cells(self, states_CW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (C, embed_dim) unit rows of hidden states, each as if it were the only patch of an image."""
        return self.embedder.teacher.embed_cells(states_CW)

    def embed_pictures(self, files: Sequence[Path]) -> NDArray[np.float16]:
        """Return (len(files), embed_dim) float16 unit rows of whole images.

        Raises:
            SettingError: a file cannot be read as an image.
        """
        size = max(1, self.embedder.image_batch)
        parts = [self._embed_some(files[i : i + size]) for i in range(0, len(files), size)]
        return np.concatenate(parts)

    def _embed_some(self, files: Sequence[Path]) -> NDArray[np.float16]:
        form = self.pixel_format(1)
        pixels = np.zeros((len(files), *form.image_shape), np.uint8)
        refs = [ImageRef(-1, ImageLocation(path=file), (WHOLE_IMAGE,)) for file in files]
        images: list[DecodedImage] = []
        for ref, out in zip(refs, pixels, strict=True):
            image = decode_image(ref, form, out)
            if image.reason is not None:
                raise SettingError(
                    f"{ref.location.path}: {image.reason}; name an image that can be read"
                )
            images.append(image)
        batch = DecodedBatch(None, refs, images, pixels)
        rows_BD = self.embedder.start_images(*batch.flat_views())()
        _check_unit(rows_BD, [str(file) for file in files])
        return rows_BD


def _check_unit(rows_BD: NDArray[np.float16], names: Sequence[str]) -> None:
    for name, is_sound in zip(names, is_unit(rows_BD), strict=True):
        if not is_sound:
            raise SettingError(f"{name}: the teacher returned an embedding that is not finite")
