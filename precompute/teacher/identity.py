"""Teachers of a cache: adding a checkpoint as one, and recognising it again."""

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
from ...store.format.layout import Modality
from ...store.format.patch_map import PatchMap
from ...store.format.record_fields import Fields
from ...store.format.row_encoding import RowCodec
from ...store.format.teacher_files import commit_teacher
from ...store.format.teacher_record import Distortion, TeacherRecord
from ...store.format.transaction import roll_forward
from ...store.format.views import VIEW_CODE_VERSION
from ...store.io.storage import Storage
from .teacher import Teacher

_DECODE = "image_decode"
"""Name of its entry in an identity."""

_COMPILED = "compiled"
"""Name of its entry in an identity, which only a compiled teacher has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherChoices:
    """Settings of a user that change a checkpoint's embeddings; all are part of the identity.

    Settings left open take the value recorded in the cache; for a new teacher, the checkpoint and the
    device decide.
    """

    compute_dtype: str = "auto"
    """One of COMPUTE_DTYPES; auto is open."""

    decode: Decode | None = None
    """How images are decoded; None is open: exact for a new teacher."""

    max_num_patches: int | None = None
    """Most patches of a view, for a NaFlex checkpoint; None is open."""

    is_compiled: bool | None = None
    """Whether torch.compile runs the encoder layers; None is open: not for a new teacher."""

    def fill_from(self, record: TeacherRecord) -> "TeacherChoices":
        """Return the choices, with open ones as recorded."""
        dtype, limit = self.compute_dtype, self.max_num_patches
        return TeacherChoices(
            compute_dtype=recorded_dtype(record) if dtype == "auto" else dtype,
            decode=self.decode or recorded_decode(record),
            max_num_patches=_recorded_max_num_patches(record) if limit is None else limit,
            is_compiled=recorded_compiled(record) if self.is_compiled is None else self.is_compiled,
        )

    def apply(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return the checkpoint with the chosen number of patches.

        Raises:
            SettingError: a number of patches was chosen, and the checkpoint has a fixed resolution.
        """
        if self.max_num_patches is None:
            return checkpoint
        return with_max_num_patches(checkpoint, self.max_num_patches)


def identify(
    checkpoint: Checkpoint, *, compute_dtype: str, decode: Decode, is_compiled: bool
) -> dict[str, Any]:
    """Return everything that determines a teacher's embeddings; a different value is another teacher."""
    identity = checkpoint_identity(checkpoint, compute_dtype=compute_dtype)
    compiled = {_COMPILED: True} if is_compiled else {}
    return {**identity, _DECODE: decode, **compiled, "view_code_version": VIEW_CODE_VERSION}


def recorded_decode(record: TeacherRecord) -> Decode:
    """Return how images were decoded for a teacher of a cache."""
    found = record.identity.get(_DECODE, "exact")  # missing from older records
    if found not in DECODES:
        _identity_fields(record).refuse(_DECODE, f"one of {', '.join(DECODES)}")
    return found


def recorded_compiled(record: TeacherRecord) -> bool:
    """Return whether torch.compile ran the layers of a teacher of a cache."""
    return bool(record.identity.get(_COMPILED, False))


def recorded_dtype(record: TeacherRecord) -> str:
    """Return the compute dtype of a teacher of a cache."""
    return _identity_fields(record).text("compute_dtype")


def _recorded_max_num_patches(record: TeacherRecord) -> int | None:
    name = "image_max_num_patches"
    has_limit = record.identity.get(name) is not None
    return _identity_fields(record).count(name, least=1) if has_limit else None


def _identity_fields(record: TeacherRecord) -> Fields:
    return Fields(record.identity, f"teacher {record.name}", "identity.")


def find_teacher(
    cache: Cache, checkpoint: Checkpoint, choices: TeacherChoices, *, name: str | None
) -> TeacherRecord | None:
    """Return the cache's record of this checkpoint, or None if it would be a new teacher.

    Args:
        cache: the cache.
        checkpoint: the checkpoint of the build.
        choices: settings such as --dtype.
        name: --teacher-name; None: the name it has in the cache, else the checkpoint's own.

    Raises:
        SettingError: the name belongs to a different teacher; the message lists the differences.
    """
    wanted = checkpoint.name if name is None else name
    check_teacher_name(wanted)
    records = cache.teacher_records
    if name is None:
        for record in records.values():
            if not record.is_imported and not identity_differences(record, checkpoint, choices):
                return record
    record = records.get(wanted)
    if record is None:
        refuse_other_case(cache, wanted)
        return None
    if record.is_imported:
        raise SettingError(
            f"teacher {wanted!r} of {cache.root} was imported from {record.source} and cannot be run; "
            "give the checkpoint another name with --teacher-name"
        )
    differences = identity_differences(record, checkpoint, choices)
    if differences:
        raise SettingError(
            f"teacher {wanted!r} of {cache.root} is not {checkpoint.given}: "
            f"{'; '.join(differences)}; to add it as a second teacher, give it another name with "
            "--teacher-name"
        )
    return record


def refuse_other_targets(cache: Cache, record: TeacherRecord, targets: str | None) -> None:
    """Refuse to store the targets of a teacher of a cache in another way.

    Raises:
        SettingError: ``targets`` (--targets; None: as recorded) differs from the record.
    """
    if targets not in (None, record.encoding.name):
        raise SettingError(
            f"the targets of {record.name} in {cache.root} are {record.encoding.name}, and --targets is "
            f"{targets}; siglip2-cache convert makes a cache with other targets"
        )


def refuse_other_patches(
    cache: Cache, record: TeacherRecord, grid: int | None, dim: int | None
) -> None:
    """Refuse other patch targets than those of a teacher of a cache.

    Raises:
        SettingError: ``grid`` or ``dim`` (None: as recorded) differs from the record.
    """
    patches = record.patches
    if grid is not None and patches is None:
        raise SettingError(
            f"{record.name} in {cache.root} has no patch targets, which are made with its embeddings; leave "
            "out --patch-targets, or build a new cache or under another --teacher-name"
        )
    if patches is None:
        return
    for option, asked, recorded in (
        ("--patch-targets", grid, patches.grid),
        ("--patch-dims", dim, patches.dim),
    ):
        if asked not in (None, recorded):
            raise SettingError(
                f"{option} of {record.name} in {cache.root} is {recorded}, and {asked} was asked for; leave "
                "it out, or build a new cache or under another --teacher-name"
            )


def check_teacher_name(name: str) -> None:
    """Refuse a name that cannot be a folder.

    Raises:
        SettingError: it has other characters.
    """
    if not layout.is_teacher_name(name):
        raise SettingError(
            f"teacher name {name!r} cannot be a folder name; use letters, digits, '.', '_' and '-', "
            "starting with a letter or digit"
        )


def refuse_other_case(cache: Cache, name: str) -> None:
    """Refuse a name that is another teacher's folder on a case-insensitive disk.

    Raises:
        SettingError: it differs from a teacher's name only in case.
    """
    same = [other for other in cache.teachers if other.casefold() == name.casefold()]
    if same:
        raise SettingError(
            f"teacher name {name!r} differs from {same[0]!r} of {cache.root} only in case, which many "
            "disks ignore; give it another name with --teacher-name"
        )


def add_teacher(
    cache: Cache,
    checkpoint: Checkpoint,
    teacher: Teacher,
    *,
    name: str | None,
    compute_dtype: str,
    decode: Decode,
    is_compiled: bool,
    batch_size: Mapping[Modality, int],
    codec: RowCodec,
    distortion: Distortion | None,
    patches: PatchMap | None,
) -> None:
    """Add a teacher to a cache: its record, the metadata of its arrays, and how its rows are stored."""
    name = checkpoint.name if name is None else name
    commit_teacher(
        cache.files,
        cache.manifest,
        {
            "name": name,
            "source": str(Path(checkpoint.given).absolute())
            if checkpoint.revision is None
            else checkpoint.given,
            "revision": checkpoint.revision,
            "identity": identify(
                checkpoint, compute_dtype=compute_dtype, decode=decode, is_compiled=is_compiled
            ),
            "embed_dim": teacher.embed_dim,
            "dtype": codec.encoding.name,  # here, as in the records of earlier releases
            "logit_scale": teacher.logit_scale,
            "logit_bias": teacher.logit_bias,
            "batch_size": dict(batch_size),
            "generation": cache.manifest.latest.number,
        },
        codec,
        distortion,
        patches,
    )


def finish_interrupted_teachers(files: Storage) -> None:
    """Finish adding teachers where a process died on the way."""
    for name in layout.teacher_names(files.names(layout.TEACHERS)):
        roll_forward(files, layout.teacher_record(name))


def restore_checkpoint(checkpoint: Checkpoint, record: TeacherRecord) -> Checkpoint:
    """Return the checkpoint of a teacher with the settings it was added with."""
    return TeacherChoices().fill_from(record).apply(restore_transparency(checkpoint, record))


def restore_transparency(checkpoint: Checkpoint, record: TeacherRecord) -> Checkpoint:
    """Return the checkpoint with transparent pixels treated as for a teacher of a cache.

    Earlier builds ignored transparency, against the checkpoint's processor.
    """
    on_white = shows_on_white(record.identity)
    return replace(checkpoint, image_recipe=replace(checkpoint.image, on_white=on_white))


def identity_differences(
    record: TeacherRecord, checkpoint: Checkpoint, choices: TeacherChoices
) -> list[str]:
    """Return the differences between a teacher of a cache and a checkpoint, with both values."""
    choices = choices.fill_from(record)
    if isinstance(checkpoint.image, NaflexRecipe):  # else the kinds of checkpoint differ too
        checkpoint = choices.apply(checkpoint)
    ours = identify(
        checkpoint,
        compute_dtype=choices.compute_dtype,
        decode=choices.decode or "exact",
        is_compiled=bool(choices.is_compiled),
    )
    eager = {_COMPILED: False}
    # Missing from older records.
    older = {_DECODE: "exact", TRANSPARENCY: "ignored"}
    return list(_compare({**eager, **older, **record.identity}, {**eager, **ours}))


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
