"""The packages that are installed, against the versions that this one needs."""

import importlib.metadata
import platform
from collections.abc import Callable, Sequence

from packaging.requirements import Requirement

from ..version import __version__
from .report import Check, Fault

_OF_DEVELOPERS = {"bench", "dist", "docs", "test"}
_SHOWN = ("torch", "transformers", "numpy", "polars", "zarr", "faiss-cpu", "pillow")

VersionOf = Callable[[str], str]
"""Returns the installed version of a package, or raises PackageNotFoundError."""


def own_requirements() -> list[Requirement]:
    """Return what the metadata of the installed package requires, extras included."""
    return [Requirement(line) for line in importlib.metadata.requires("siglip2-cache") or ()]


def check_versions(
    requirements: Sequence[Requirement], *, version_of: VersionOf = importlib.metadata.version
) -> Check:
    """Return the versions of what the package needs; missing and older ones are faults."""
    versions: dict[str, str | None] = {}
    faults: list[Fault] = []
    for needed in requirements:
        if _extra_of(needed) is not None:
            continue
        versions[needed.name] = found = _version(needed, version_of)
        if found is None or not needed.specifier.contains(found, prereleases=True):
            faults.append(
                Fault(
                    problem=f"{needed.name} is {found or 'missing'}, needed is {needed.specifier}",
                    remedy=f"pip install '{needed.name}{needed.specifier}'",
                )
            )
    shown = [f"{name} {versions[name]}" for name in _SHOWN if versions.get(name)]
    python = platform.python_version()
    return Check(
        name="versions",
        found=", ".join([f"siglip2-cache {__version__}", f"Python {python}", *shown]),
        values={"siglip2-cache": __version__, "python": python, "packages": versions},
        faults=tuple(faults),
    )


def check_extras(
    requirements: Sequence[Requirement], *, version_of: VersionOf = importlib.metadata.version
) -> Check:
    """Return which extras are installed; one that is there in an older version is a fault."""
    missing: set[str] = set()
    faults: list[Fault] = []
    extras: dict[str, None] = {}
    for needed in requirements:
        extra = _extra_of(needed)
        if extra is None or extra in _OF_DEVELOPERS:
            continue
        extras[extra] = None
        found = _version(needed, version_of)
        if found is None:
            missing.add(extra)
        elif not needed.specifier.contains(found, prereleases=True):
            faults.append(
                Fault(
                    problem=f"{needed.name} of the extra {extra} is {found}, needed is "
                    f"{needed.specifier}",
                    remedy=f"pip install '{needed.name}{needed.specifier}'",
                )
            )
    there = [extra for extra in extras if extra not in missing]
    lacking = [extra for extra in extras if extra in missing]
    found = ", ".join(there) or "none"
    if lacking:
        found += (
            f"; not installed: {', '.join(lacking)} (pip install 'siglip2-cache[{lacking[0]}]')"
        )
    return Check(
        name="extras",
        found=found,
        values={"installed": there, "missing": lacking},
        faults=tuple(faults),
    )


def _extra_of(needed: Requirement) -> str | None:
    """Return the extra that a requirement belongs to, such as s3 of ``s3fs; extra == "s3"``."""
    if needed.marker is None or needed.marker.evaluate({"extra": ""}):
        return None
    return str(needed.marker).rpartition("extra == ")[2].strip("\"'")


def _version(needed: Requirement, version_of: VersionOf) -> str | None:
    try:
        return version_of(needed.name)
    except importlib.metadata.PackageNotFoundError:
        return None
