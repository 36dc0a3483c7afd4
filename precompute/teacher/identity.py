"""Making a checkpoint a teacher of a cache, and recognising it when it comes back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import SettingError
from ...images.pixels import DECODES, Decode
from ...siglip import (
    TRANSPARENCY,
    Checkpoint,
    NaflexRecipe,
    checkpoint_identity,
    shows_on_white,
    with_max_num_patches,
)
from ...store.cache import Cache
from ...store.format import layout
from ...store.format.layout import MODALITIES, Modality
from ...store.format.manifest import Manifest
from ...store.format.record_fields import Fields
from ...store.format.teacher_record import TeacherRecord
from ...store.format.transaction import Transaction, roll_forward
from ...store.format.views import VIEW_CODE_VERSION
from ...store.io.storage import Storage
from .teacher import Teacher

_DECODE = "image_decode"
"""Name of the fact in an identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherChoices:
    """What a user may choose about a checkpoint's embeddings; all of it is in the identity.

    What is left open takes over what the cache recorded, or for a new teacher is settled by the
    checkpoint and the device.
    """

    compute_dtype: str = "auto"
    """One of COMPUTE_DTYPES; auto is open."""

    decode: Decode | None = None
    """How pictures are decoded; None is open, and exact for a new teacher."""

    max_num_patches: int | None = None
    """Patches of a view at most, for a NaFlex checkpoint; None is open."""

    def as_recorded(self, record: TeacherRecord) -> "TeacherChoices":
        """Return the choices with what was left open as it is recorded."""
        dtype, limit = self.compute_dtype, self.max_num_patches
        return TeacherChoices(
            compute_dtype=dtype_of(record) if dtype == "auto" else dtype,
            decode=self.decode or decode_of(record),
            max_num_patches=_max_num_patches_of(record) if limit is None else limit,
        )

    def of(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return the checkpoint with what was chosen.

        Raises:
            SettingError: it is of fixed resolution, and a number of patches was asked for.
        """
        if self.max_num_patches is None:
            return checkpoint
        return with_max_num_patches(checkpoint, self.max_num_patches)


def identify(checkpoint: Checkpoint, *, compute_dtype: str, decode: Decode) -> dict[str, Any]:
    """Return what makes this teacher's embeddings its own; another value means another teacher."""
    identity = checkpoint_identity(checkpoint, compute_dtype=compute_dtype)
    return {**identity, _DECODE: decode, "view_code_version": VIEW_CODE_VERSION}


def decode_of(record: TeacherRecord) -> Decode:
    """Return how the pictures of a teacher of a cache were decoded."""
    found = record.identity.get(_DECODE, "exact")  # older records do not say
    if found not in DECODES:
        _identity_of(record).refuse(_DECODE, f"one of {', '.join(DECODES)}")
    return found


def dtype_of(record: TeacherRecord) -> str:
    """Return what a teacher of a cache computed in."""
    return _identity_of(record).text("compute_dtype")


def _max_num_patches_of(record: TeacherRecord) -> int | None:
    name = "image_max_num_patches"
    is_said = record.identity.get(name) is not None
    return _identity_of(record).count(name, least=1) if is_said else None


def _identity_of(record: TeacherRecord) -> Fields:
    return Fields(record.identity, f"teacher {record.name}", "identity.")


def find_teacher(
    cache: Cache, checkpoint: Checkpoint, choices: TeacherChoices, *, name: str | None
) -> TeacherRecord | None:
    """Return the cache's record of this checkpoint, or None where it would be a new teacher.

    Args:
        cache: the cache.
        checkpoint: what the user named.
        choices: --dtype and the like; what is open takes over what the cache recorded.
        name: --teacher-name; None: the checkpoint's own name, or whatever name it has in the cache.

    Raises:
        SettingError: the name belongs to a teacher that differs; each difference is named.
    """
    wanted = checkpoint.name if name is None else name
    if not layout.is_teacher_name(wanted):
        raise SettingError(
            f"teacher name {wanted!r} cannot be a folder; use letters, digits, '.', '_' and '-', "
            "a letter or a digit first"
        )
    records = cache.teacher_records
    if name is None:
        for record in records.values():
            if not identity_differences(record, checkpoint, choices):
                return record
    record = records.get(wanted)
    if record is None:
        _refuse_other_case(cache, wanted)
        return None
    differences = identity_differences(record, checkpoint, choices)
    if differences:
        raise SettingError(
            f"teacher {wanted!r} of {cache.root} is not {checkpoint.given}: "
            f"{'; '.join(differences)}; to add it as a second teacher give it another name with "
            "--teacher-name"
        )
    return record


def _refuse_other_case(cache: Cache, name: str) -> None:
    """Refuse a name that is another teacher's folder on a disk that knows no case.

    Raises:
        SettingError: it differs from a teacher's in upper and lower case alone.
    """
    same = [other for other in cache.teachers if other.casefold() == name.casefold()]
    if same:
        raise SettingError(
            f"teacher name {name!r} differs from {same[0]!r} of {cache.root} in case alone, which many "
            "disks do not tell apart; give it another name with --teacher-name"
        )


def enroll(
    cache: Cache,
    checkpoint: Checkpoint,
    teacher: Teacher,
    *,
    name: str | None,
    compute_dtype: str,
    decode: Decode,
    batch_size: Mapping[Modality, int],
) -> None:
    """Add a teacher to a cache: its record and the metadata of its arrays."""
    name = checkpoint.name if name is None else name
    latest = cache.manifest.latest.number
    transaction = Transaction(cache.files, layout.teacher_record(name))
    _stage_metadata(cache.manifest, transaction, name, teacher.embed_dim)
    transaction.commit(
        {
            "name": name,
            "source": str(Path(checkpoint.given).absolute())
            if checkpoint.revision is None
            else checkpoint.given,
            "revision": checkpoint.revision,
            "identity": identify(checkpoint, compute_dtype=compute_dtype, decode=decode),
            "embed_dim": teacher.embed_dim,
            "dtype": "float16",
            "logit_scale": teacher.logit_scale,
            "logit_bias": teacher.logit_bias,
            "batch_size": dict(batch_size),
            "generation": latest,
        }
    )


def finish_enrolments(files: Storage) -> None:
    """Roll forward teachers whose enrolment was interrupted."""
    for name in layout.teacher_names(files.names(layout.TEACHERS)):
        roll_forward(files, layout.teacher_record(name))


def grow_arrays(cache: Cache, record: TeacherRecord) -> None:
    """Give a teacher's arrays the shape of the catalog's latest generation, before any unit of it.

    Each generation has a record of its own, made in order: once a later shape is set, the records of
    all earlier ones stand, and a slow process or an intent left behind cannot set them again.
    """
    for number in range(record.generation + 1, cache.manifest.latest.number + 1):
        path = layout.arrays_record(record.name, number)
        if roll_forward(cache.files, path):
            continue
        transaction = Transaction(cache.files, path)
        _stage_metadata(cache.manifest.as_of(number), transaction, record.name, record.embed_dim)
        transaction.commit({"generation": number})


def _stage_metadata(
    manifest: Manifest, transaction: Transaction, name: str, embed_dim: int
) -> None:
    for modality in MODALITIES:
        metadata = manifest.array_layout(modality, embed_dim).metadata()
        data = (json.dumps(metadata, indent=1) + "\n").encode()
        transaction.add(layout.array_metadata(name, modality), data)


def as_recorded(checkpoint: Checkpoint, record: TeacherRecord) -> Checkpoint:
    """Return the checkpoint of a teacher with what was chosen when it was added."""
    return TeacherChoices().as_recorded(record).of(with_pixels_of(record, checkpoint))


def with_pixels_of(record: TeacherRecord, checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the pixels that a teacher of a cache saw.

    Earlier builds ignored transparent colours, whatever the checkpoint's processor said.
    """
    on_white = shows_on_white(record.identity)
    return replace(checkpoint, image=replace(checkpoint.image, on_white=on_white))


def identity_differences(
    record: TeacherRecord, checkpoint: Checkpoint, choices: TeacherChoices
) -> list[str]:
    """Return what differs between a teacher of a cache and a checkpoint, old and new value named."""
    choices = choices.as_recorded(record)
    if isinstance(checkpoint.image, NaflexRecipe):  # else the kinds of checkpoint differ, too
        checkpoint = choices.of(checkpoint)
    ours = identify(
        checkpoint, compute_dtype=choices.compute_dtype, decode=choices.decode or "exact"
    )
    # What older records do not say.
    older = {_DECODE: "exact", TRANSPARENCY: "ignored"}
    return list(_compare({**older, **record.identity}, ours))


def _compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} was {_show(old.get(key))} and is {_show(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _show(value: Any) -> str:
    text = str(value)
    is_hash = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return f"{text[:12]}..." if is_hash else text
