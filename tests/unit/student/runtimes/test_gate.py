"""The check of exported files, without files: a student that is asked twice, and one that is broken."""

from typing import Any

import numpy as np
import pytest

from siglip2_cache.errors import ExportError
from siglip2_cache.student.evaluation.embeddings import Embeddings, unit_rows_float32
from siglip2_cache.student.runtimes.gate import LIMITS, Parity, _check, _parity
from siglip2_cache.student.runtimes.held_out import HeldOut, Outputs

NONE = np.empty(0, np.int64)
draw = np.random.default_rng(0)
IMAGES, MAP = (draw.normal(size=shape).astype(np.float32) for shape in ((30, 4), (6, 4)))


def outputs(map_ED: Any = MAP) -> Outputs:
    """An image tower alone with a map."""
    images, no_texts = unit_rows_float32(IMAGES), np.empty((0, 4), np.float32)
    mapped = (unit_rows_float32(images @ map_ED.T), np.empty((0, 6), np.float32))
    return Outputs(images_ND=images, texts_MD=no_texts, logit=None, mapped=mapped)


def parity_of(found: Outputs) -> Parity:
    teacher = Embeddings(
        name="teacher",
        images_ND=outputs().in_teacher_space[0],
        texts_MD=np.empty((0, 6), np.float32),
        logit_scale=None,
        logit_bias=None,
    )
    held_out = HeldOut(
        pixels_N=np.empty((30, 1), np.uint8),
        grids_N2=None,
        texts=[],
        image_P=NONE,
        text_P=NONE,
        picture_N=np.arange(30),
        teacher=teacher,
    )
    exported: Any = None  # its logits are not asked for
    return _parity(exported, found, outputs(), held_out)


def test_of_one_tower_only_cosines_and_the_teachers_index_are_compared() -> None:
    parity = parity_of(outputs())
    _check(parity, LIMITS["float32"], "a file", num_captioned=0)
    assert parity.as_json() == {
        "images": 30,
        "texts": 0,
        "image_cosine": pytest.approx(1),
        "mean_image_cosine": pytest.approx(1),
        "image_in_teacher_index": {"cosine": pytest.approx(1), "neighbour_overlap": (1, 1)},
    }


def test_a_broken_map_is_refused_though_the_other_output_is_right() -> None:
    parity = parity_of(outputs(MAP[::-1].copy()))
    assert parity.mean_image_cosine == pytest.approx(1)
    assert parity.image_in_teacher_index is not None
    first, second = parity.image_in_teacher_index.neighbour_overlap
    assert (first, second) == (1, pytest.approx(0.3, abs=0.2))
    with pytest.raises(ExportError, match=r"^a file .*: cosine of an image to"):
        _check(parity, LIMITS["int8"], "a file", num_captioned=0)


def test_one_query_of_the_captioned_images_may_be_lost_to_rounding() -> None:
    parity = Parity(images=256, texts=100, image_to_text=(0.5, 0.49))
    _check(parity, LIMITS["float32"], "a file", num_captioned=100)
    with pytest.raises(ExportError, match="R@1 image to text"):
        _check(parity, LIMITS["float32"], "a file", num_captioned=256)
