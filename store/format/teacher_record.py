"""Records of teachers: teacher.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..io.storage import Storage
from . import layout
from .layout import MODALITIES, Modality
from .record_fields import Fields, read_record
from .row_encoding import ENCODINGS, FLOAT16, RowEncoding

IMPORTED = "imported"
"""Field of the identity of imported targets: the SHA-256 of what was imported."""

_MAX_EMBED_DIM = 2**20

MAX_GRID = 64
"""Largest grid of patch targets: NaFlex views of 4,096 patches are 64 x 64."""

_MAX_LOGIT_SCALE = 700.0  # its exponential is a finite double


@dataclass(frozen=True, slots=True, kw_only=True)
class Distortion:
    """What encoding changes, as measured when the teacher was added; store/targets/distortion.py."""

    kl_share: float
    """KL divergence of the soft targets as a share of their entropy, the floor of the soft loss."""

    largest_logit_error: float
    mean_squared_error: float
    """Mean squared norm of the difference of a vector; kl_share is proportional to it."""

    num_images: int
    num_texts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSettings:
    """The patch targets of a teacher: pooled hidden states of its image tower."""

    grid: int
    """Rows and columns of cells of a square view; no view has more than grid * grid cells."""

    dim: int
    """Values of a cell."""

    width: int
    """Width of the hidden states."""

    rms: float
    """Root mean square of a value, on the images that the map was fitted to."""

    kept: float
    """Share of the squared norm of the hidden states of these images that the map keeps."""

    num_images: int
    """Images that the map was fitted to."""

    @property
    def num_cells(self) -> int:
        """Cells that a view has room for."""
        return self.grid * self.grid


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
    encoding: RowEncoding = FLOAT16
    """How targets are stored. Not part of the identity: the teacher is the same."""

    distortion: Distortion | None = None
    """What the encoding changes; None for float16."""

    patches: PatchSettings | None = None
    """Its patch targets; None: there are none."""

    @property
    def is_imported(self) -> bool:
        """Whether another program made the targets: there is no checkpoint to run."""
        return IMPORTED in self.identity


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
        encoding=_parse_encoding(record),
        distortion=_parse_distortion(record),
        patches=_parse_patches(record),
    )


def _parse_encoding(record: Fields) -> RowEncoding:
    name = record.text("dtype") if "dtype" in record.values else FLOAT16.name
    if name not in ENCODINGS:
        record.refuse("dtype", " or ".join(ENCODINGS))
    return ENCODINGS[name]


def _parse_distortion(record: Fields) -> Distortion | None:
    if "distortion" not in record.values:
        return None
    fields = record.fields("distortion")
    return Distortion(
        kl_share=fields.number("kl_share"),
        largest_logit_error=fields.number("largest_logit_error"),
        mean_squared_error=fields.number("mean_squared_error"),
        num_images=fields.count("num_images"),
        num_texts=fields.count("num_texts"),
    )


def _parse_patches(record: Fields) -> PatchSettings | None:
    if "patches" not in record.values:
        return None
    fields = record.fields("patches")
    width = fields.count("width", least=1, most=_MAX_EMBED_DIM)
    found = PatchSettings(
        grid=fields.count("grid", least=1, most=MAX_GRID),
        dim=fields.count("dim", least=1, most=width),
        width=width,
        rms=fields.number("rms"),
        kept=fields.number("kept"),
        num_images=fields.count("num_images"),
    )
    if found.rms <= 0:
        fields.refuse("rms", "a number above 0")
    return found
