"""What the loss of each step needs besides its embeddings: matching pairs, and the draws of the banks."""

import torch
from torch import Tensor

from ...siglip import to_device
from ..data.batch import Batch, TaughtRows
from ..losses.image_bank import ImageBank
from ..losses.objective import BankImages, TextColumns
from ..losses.pca_map import PcaMap
from ..losses.text_bank import TextBank
from .resolve import Resolved
from .resolve_teachers import RunTeacher
from .teacher_part import BatchLabels


class LabelMaker:
    """Makes the labels of each step for each teacher."""

    def __init__(self, resolved: Resolved, pca: PcaMap | None) -> None:
        """Open the banks.

        Args:
            resolved: settings, cache and checkpoint.
            pca: the fixed map, where there is one.
        """
        self._train, self._device = resolved.train, resolved.device
        self._map_ED = None if pca is None else torch.from_numpy(pca.map_ED).to(self._device)
        self._banks = [
            (
                _text_bank(resolved, teacher) if teacher.has_text_bank else None,
                _image_bank(resolved, teacher) if teacher.has_image_bank else None,
            )
            for teacher in resolved.teachers
        ]

    def make(self, step: int, batch: Batch) -> list[BatchLabels]:
        """Return the labels of a batch: rows on the device, what matches on the host."""
        return [
            self._of_teacher(step, batch.taught(i), *banks) for i, banks in enumerate(self._banks)
        ]

    def _of_teacher(
        self, step: int, taught: TaughtRows, texts: TextBank | None, images: ImageBank | None
    ) -> BatchLabels:
        matching_2P = self._train.matching_pairs(taught.positions_N, taught.text_rows_M)
        return BatchLabels(
            matching_2P=torch.from_numpy(matching_2P),
            bank=None if texts is None else self._columns(texts, step, taught),
            image_bank=None if images is None else self._bank_images(images, step),
        )

    def _columns(self, bank: TextBank, step: int, taught: TaughtRows) -> TextColumns:
        drawn = bank.draw(step, taught.positions_N, taught.caption_NC, taught.text_rows_M)
        teacher_KE = to_device(torch.from_numpy(drawn.targets_KE), self._device).float()
        return TextColumns(
            text=self._mapped(teacher_KE),
            caption_NC=torch.from_numpy(drawn.caption_NC),
            matching_2P=torch.from_numpy(drawn.matching_2P),
            teacher_text_ME=teacher_KE,
        )

    def _bank_images(self, bank: ImageBank, step: int) -> BankImages:
        teacher_KE = to_device(torch.from_numpy(bank.draw(step)), self._device).float()
        return BankImages(target_KE=self._mapped(teacher_KE), teacher_KE=teacher_KE)

    def _mapped(self, teacher_KE: Tensor) -> Tensor:
        return teacher_KE if self._map_ED is None else teacher_KE @ self._map_ED


def _text_bank(resolved: Resolved, teacher: RunTeacher) -> TextBank:
    """Return the bank of the train split's texts."""
    config, texts = resolved.config, teacher.targets.texts
    return TextBank(resolved.train, resolved.val, texts, size=config.bank_size, seed=config.seed)


def _image_bank(resolved: Resolved, teacher: RunTeacher) -> ImageBank:
    """Return the bank of the train split's images."""
    config, targets = resolved.config, teacher.targets
    return ImageBank(
        targets.image_rows(resolved.train),
        targets.images,
        num_views=resolved.cache.num_views,
        size=config.bank_size,
        seed=config.seed,
    )
