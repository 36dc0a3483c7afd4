"""Verification of kept pixels: the bytes of their files, and that the tables describe the tars."""

import io
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import polars as pl

from ...errors import CacheError
from ..cache import Cache
from ..format import layout
from ..format.catalog import PIXELS_SCHEMA
from ..format.kept_pixels import BLOCK, END, KeptPixels
from ..format.manifest import Unit
from ..format.unit_records import UnitRecord
from .files import Checked, FileChecker

MapUnits = Callable[
    [Callable[[Unit, UnitRecord], Checked], Iterable[tuple[Unit, UnitRecord]]],
    Iterable[Checked],
]
"""Calls a function for each unit, perhaps in several threads; yields the results in order."""


def check_kept_pixels(cache: Cache, checker: FileChecker, map_units: MapUnits) -> Checked:
    """Return the faults of the kept pixels of a cache; a cache may have none.

    Args:
        cache: the cache.
        checker: checks the files.
        map_units: calls the check of each unit.
    """
    found = Checked()
    try:
        kept = cache.kept_pixels()
    except CacheError as error:
        # Their records cannot be told from other files without it, so none of them is reported.
        found.named += [p for p in cache.files.walk() if p.startswith(f"{layout.PIXELS}/")]
        found.faults.append(f"{error}; or remove the folder {layout.PIXELS} to keep them anew")
        return found
    if kept is None:
        return found
    found.named.append(layout.PIXELS_RECORD)
    found.faults += [
        f"{m}; run the same build again to keep them again" for m in kept.commits.damaged
    ]
    units: list[tuple[Unit, UnitRecord]] = []
    missing: list[int] = []
    for unit in cache.manifest.units("image"):
        if unit.number in kept.units:
            units.append((unit, kept.units[unit.number]))
            continue
        files = [layout.pixels_tar(unit.number), layout.pixels_index(unit.number)]
        found.named += files
        if not set(files) <= checker.unfinished.keys():
            missing.append(unit.number)
    for checked in map_units(partial(_check_unit, kept, checker), units):
        found.add(checked)
    if missing:
        found.faults.append(
            f"pixels: {len(missing):,} image units are not kept yet (first: {missing[0]}); run the same "
            "build again"
        )
    return found


def _check_unit(kept: KeptPixels, checker: FileChecker, unit: Unit, commit: UnitRecord) -> Checked:
    found = Checked()
    number = unit.number
    owner = layout.pixels_unit_record(number, commit.attempt)
    tar, index = layout.pixels_tar(number), layout.pixels_index(number)
    pieces: list[bytes] = []
    takes: dict[str, Callable[[bytes], object]] = {index: pieces.append}
    sound = [
        checker.check(path, description, owner, found, takes.get(path, lambda piece: None))
        for path, description in commit.files.items()
    ]
    if {tar, index} != set(commit.files):
        found.faults.append(f"{owner} does not name {tar} and {index} alone")
    elif commit.num_rows != unit.rows.count:
        found.faults.append(f"{owner} has {commit.num_rows} rows, {unit.rows.count} were planned")
    elif all(sound):
        reason = _wrong_index(b"".join(pieces), unit, commit, commit.files[tar]["num_bytes"])
        if reason is not None:
            found.faults.append(
                f"{index} {reason}; remove the folder {layout.PIXELS} to keep them anew"
            )
    return found


def _wrong_index(data: bytes, unit: Unit, commit: UnitRecord, tar_bytes: int) -> str | None:
    """Return what contradicts the plan or the tar in a table; None if nothing does."""
    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except pl.exceptions.PolarsError as error:
        return f"cannot be read as Parquet ({error})"
    if frame.columns != PIXELS_SCHEMA.names:
        return f"has columns {', '.join(frame.columns)}"
    expected = [row for row in range(unit.rows.first, unit.rows.end) if row not in commit.rejected]
    if frame["row"].to_list() != expected:
        return "does not have a line for each row that is not rejected, ascending"
    length_N = frame["length"].to_numpy()
    size_N = BLOCK + length_N + -length_N % BLOCK
    start_N = np.concatenate([[0], np.cumsum(size_N)])
    is_wrong_N = frame["offset"].to_numpy() != start_N[:-1] + BLOCK
    if is_wrong_N.any() or start_N[-1] + len(END) != tar_bytes:
        return "does not describe the members of the tar one after another"
    return None
