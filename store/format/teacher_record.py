"""Records of teachers: teacher.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..io.storage import Storage
from . import layout
from .layout import MODALITIES, Modality
from .record_fields import Fields, read_record

_MAX_EMBED_DIM = 2**20
_MAX_LOGIT_SCALE = 700.0  # its exponential is a finite double


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecord:
    """One teacher of a cache."""

    name: str
    identity: Mapping[str, Any]
    embed_dim: int
    logit_scale: float
    """The stored parameter, a logarithm: the temperature of the sigmoid is its exponential."""

    logit_bias: float
    batch_size: Mapping[Modality, int]
    """Images or texts in one forward pass; fixed once, so that a build can reproduce its bytes."""

    source: str
    """Path or hub id as the user gave it."""

    revision: str | None
    """Commit of a hub id; None for a local folder."""

    generation: int
    """Generation of the catalog when the teacher was added; later ones have arrays-<generation> records."""

    files: Mapping[str, Mapping[str, Any]]


def read_teachers(files: Storage) -> dict[str, TeacherRecord]:
    """Return the teachers of a cache by name, sorted."""
    teachers: dict[str, TeacherRecord] = {}
    for name in layout.teacher_names(files.names(layout.TEACHERS)):
        record = read_record(files, layout.teacher_record(name))
        if record is not None:
            teachers[name] = _parse_teacher(record, name)
    return teachers


def _parse_teacher(record: Fields, name: str) -> TeacherRecord:
    if record.text("name") != name:
        record.refuse("name", f"{name!r}, as its folder")
    batch_size = record.fields("batch_size")
    return TeacherRecord(
        name=name,
        identity=record.mapping("identity"),
        embed_dim=record.count("embed_dim", least=1, most=_MAX_EMBED_DIM),
        logit_scale=record.number("logit_scale", limit=_MAX_LOGIT_SCALE),
        logit_bias=record.number("logit_bias"),
        batch_size={m: batch_size.count(m, least=1) for m in MODALITIES},
        source=record.text("source"),
        revision=record.text_or_none("revision"),
        generation=record.count("generation"),
        files=record.files(),
    )
