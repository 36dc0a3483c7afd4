"""Disks, shared memory and the limits on open files and maps."""

import os
import resource
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..formatting import format_bytes
from ..store.io.download_cache import FOLDER_VARIABLE, default_folder
from ..store.io.local import LocalStorage
from .report import Check, Fault

_LEAST_FREE = 1_000_000_000
_LEAST_FILES = 1024
_LEAST_MAPS = 65_530
"""The default of Linux. A cache maps each of its shards."""


def check_disk(folder: Path) -> Check:
    """Return the free space where caches and runs, copies, checkpoints and temporary files go.

    In the first folder a file is written, synced, renamed and removed, as a commit does.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    places = {
        "folder": folder,
        "copies": default_folder(),
        "hub": Path(HF_HUB_CACHE),
        "temporary": Path(tempfile.gettempdir()),
    }
    remedies = {
        "folder": "name another folder: siglip2-cache doctor FOLDER",
        "copies": f"name another folder with ${FOLDER_VARIABLE}",
        "hub": "name another folder with $HF_HOME",
        "temporary": "name another folder with $TMPDIR",
    }
    faults: list[Fault] = []
    values: dict[str, dict[str, Any]] = {}
    for name, place in places.items():
        there = _existing(place)
        free = shutil.disk_usage(there).free
        values[name] = {"path": str(place), "num_bytes_free": free}
        fault = _other_file(place) or _write_fault(there, is_tried=name == "folder")
        if fault:
            faults.append(Fault(problem=fault, remedy=remedies[name]))
        elif free < _LEAST_FREE:
            problem = f"{place} has {format_bytes(free)} free"
            faults.append(Fault(problem=problem, remedy=f"free some space, or {remedies[name]}"))
    return Check(name="disk", found=_free_line(values), values=values, faults=tuple(faults))


def _free_line(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the free space of each disk, with the places that are on it."""
    disks: dict[str, list[str]] = {}
    for name, value in values.items():
        disks.setdefault(format_bytes(value["num_bytes_free"]), []).append(name)
    return "; ".join(f"{free} free ({', '.join(names)})" for free, names in disks.items())


def _existing(place: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    return next(p for p in (place, *place.absolute().parents) if p.is_dir())


def _other_file(place: Path) -> str | None:
    """Return why no folder can be there, where it or the nearest above it is no folder; None if one can."""
    nearest = next(p for p in (place, *place.absolute().parents) if os.path.lexists(p))
    return None if nearest.is_dir() else f"{nearest} is not a folder"


def _write_fault(folder: Path, *, is_tried: bool) -> str | None:
    """Return why a folder cannot be written to; None if it can."""
    if not is_tried:
        return None if os.access(folder, os.W_OK) else f"{folder} is not writable"
    files, name = LocalStorage(folder), f".siglip2-cache-doctor-{secrets.token_hex(6)}"
    try:
        files.write(f"{name}.partial", b"doctor")
        files.rename(f"{name}.partial", name)
        files.remove(name)
    except OSError as error:
        return f"{folder} cannot be written to ({error.strerror or error})"
    return None


def check_shared_memory(*, num_gpus: int, folder: Path = Path("/dev/shm")) -> Check | None:
    """Return the size of shared memory, which NCCL and Ray use; None where there is no such folder."""
    if not folder.is_dir():
        return None
    usage = shutil.disk_usage(folder)
    values = {"num_bytes": usage.total, "num_bytes_free": usage.free}
    found = f"{format_bytes(usage.total)}, {format_bytes(usage.free)} free"
    if usage.free >= _LEAST_FREE:
        return Check(name="shared memory", found=found, values=values)
    remedy = "in a container: docker run --shm-size=16g, or --ipc=host; else remove old files there"
    problem = f"{folder} has {format_bytes(usage.free)} free"
    if num_gpus > 1:
        problem += f", too little for trainings on {num_gpus} GPUs"
        faults = (Fault(problem=problem, remedy=remedy),)
        return Check(name="shared memory", found=found, values=values, faults=faults)
    note = f"{problem}, too little for Ray and for several GPUs; {remedy}"
    return Check(name="shared memory", found=found, values=values, notes=(note,))


def check_limits(
    *,
    num_files: tuple[int, int] | None = None,
    maps_file: Path = Path("/proc/sys/vm/max_map_count"),
) -> Check:
    """Return the limits on open files and on maps of memory.

    Args:
        num_files: soft and hard limit of open files; None: those of this process.
        maps_file: where Linux has its limit on maps.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE) if num_files is None else num_files
    soft, hard = _finite(soft), _finite(hard)
    faults: list[Fault] = []
    if soft is not None and soft < _LEAST_FILES:
        wanted = 65_536 if hard is None else min(65_536, hard)
        remedy = f"ulimit -n {wanted} in this shell raises it"
        if wanted < _LEAST_FILES:
            remedy = "ask for a higher hard limit (limits.conf, LimitNOFILE, docker run --ulimit)"
        problem = f"a process may open {soft:,} files, expected {_LEAST_FILES:,} at least"
        faults.append(Fault(problem=problem, remedy=remedy))
    maps = _number_in(maps_file)
    if maps is not None and maps < _LEAST_MAPS:
        faults.append(
            Fault(
                problem=f"a process may map {maps:,} files, expected {_LEAST_MAPS:,} at least",
                remedy=f"sysctl -w vm.max_map_count={_LEAST_MAPS}",
            )
        )
    shown = "unlimited" if soft is None else f"{soft:,}"
    return Check(
        name="limits",
        found=f"open files {shown}" + ("" if maps is None else f", maps {maps:,}"),
        values={"open_files": soft, "open_files_hard": hard, "maps": maps},
        faults=tuple(faults),
    )


def _finite(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _number_in(file: Path) -> int | None:
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError):
        return None
