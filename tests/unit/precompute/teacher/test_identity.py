"""Recognising a checkpoint among the teachers of a cache."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.teacher.identity import TeacherChoices, find_teacher
from siglip2_cache.siglip import resolve_checkpoint
from siglip2_cache.store.cache import open_cache

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache


def test_a_name_that_differs_from_a_teachers_in_case_alone_is_refused(
    foreign: "ForeignCache", tiny_checkpoint: Path
) -> None:
    cache, checkpoint = open_cache(foreign.root), resolve_checkpoint(str(tiny_checkpoint))
    with pytest.raises(SettingError, match=r"'Tiny' differs from 'tiny' of .* only in case.*"):
        find_teacher(cache, checkpoint, TeacherChoices(), name="Tiny")
    assert find_teacher(cache, checkpoint, TeacherChoices(), name="tiny2") is None
