"""Writing the record of a teacher with the metadata of its arrays, and the records by which these grow."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..io.storage import Storage
from . import layout
from .manifest import Manifest
from .patch_map import PatchMap
from .records import INT8_VERSION, PATCH_VERSION
from .rotation import rotation_files
from .row_encoding import RowCodec
from .shard import ArrayLayout
from .teacher_record import Distortion, TeacherRecord
from .transaction import Transaction, roll_forward


def commit_teacher(
    files: Storage,
    manifest: Manifest,
    fields: Mapping[str, Any],
    codec: RowCodec,
    distortion: Distortion | None,
    patches: PatchMap | None = None,
) -> None:
    """Add a teacher to a cache: its record, the metadata of its arrays, and the maps of stored values.

    Args:
        files: the cache.
        manifest: its catalog.
        fields: fields of the record (docs/reference/format.md) without ``distortion`` and ``patches``.
        codec: how rows are stored.
        distortion: what that changes; None: not known, or float16.
        patches: its patch targets; None: there are none.
    """
    name = fields["name"]
    transaction = Transaction(files, layout.teacher_record(name))
    as_added = manifest.as_of(fields["generation"])
    settings = None if patches is None else patches.settings
    layouts = as_added.layouts(fields["embed_dim"], codec.encoding, settings)
    _stage_metadata(layouts, transaction, name)
    record = dict(fields)
    if codec.rotation is not None:
        for path, data in rotation_files(name, codec.rotation).items():
            transaction.add(path, data)
        record["format_version"] = INT8_VERSION
    if distortion is not None:
        record["distortion"] = asdict(distortion)
    if patches is not None:
        for path, data in patches.files(name).items():
            transaction.add(path, data)
        record["format_version"] = PATCH_VERSION
        record["patches"] = asdict(patches.settings)
    transaction.commit(record)


def grow_arrays(files: Storage, manifest: Manifest, record: TeacherRecord) -> None:
    """Set the shape of a teacher's arrays to that of the latest generation, before any unit of it.

    Each generation has its own record, and they are written in order: once a later shape is set, the
    records of all earlier ones exist, and no slow process or leftover intent can set them again.
    """
    for number in range(record.generation + 1, manifest.latest.number + 1):
        path = layout.arrays_record(record.name, number)
        if roll_forward(files, path):
            continue
        transaction = Transaction(files, path)
        as_then = manifest.as_of(number)
        layouts = as_then.layouts(record.embed_dim, record.encoding, record.patches)
        _stage_metadata(layouts, transaction, record.name)
        transaction.commit({"generation": number})


def _stage_metadata(layouts: Sequence[ArrayLayout], transaction: Transaction, teacher: str) -> None:
    for array in layouts:
        data = (json.dumps(array.metadata(), indent=1) + "\n").encode()
        transaction.add(layout.array_metadata(teacher, array.name), data)
