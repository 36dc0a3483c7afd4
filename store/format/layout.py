"""Every path in a cache.

CACHE/
  cache.json                              record of generation 0 of the catalog; makes the folder a cache
  catalog/append-00001.json               record of each later generation
  catalog/<table>-00000.parquet           parts of the catalog's tables
  teachers/<name>/teacher.json            record: identity, embed_dim, scale and bias
  teachers/<name>/image.zarr, text.zarr   targets
  teachers/<name>/rotation.zarr           map from the axes of int8 targets to the teacher's
  teachers/<name>/patch.zarr              patch targets
  teachers/<name>/patch_basis.zarr        map from the teacher's hidden states to the values of patch targets
  teachers/<name>/images/00000.parquet    sizes and hashes of the images of a unit
  teachers/<name>/commits/image-00000.json, text-00000.json   record of each unit
  teachers/<name>/commits/arrays-00001.json                   record of array shapes of a generation
  pixels/pixels.json                      record: size and quality of the kept pixels
  pixels/00000.tar, 00000.parquet         kept pixels of a unit, and where each image is in the tar
  pixels/commits/image-00000.json         record of each unit of kept pixels
  indexes/<name>/image.faiss, text.faiss, image-view1.faiss   approximate indexes, derived from targets
  indexes/<name>/image.json, ...                              record of each index
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")

ArrayName = Literal["image", "text", "patch"]
"""Arrays of a teacher: embeddings of each modality, and patch targets, which share the units of images."""

CACHE_RECORD = "cache.json"
CATALOG = "catalog"
TEACHERS = "teachers"
PIXELS = "pixels"
PIXELS_RECORD = f"{PIXELS}/pixels.json"
PIXELS_COMMITS = f"{PIXELS}/commits"
INDEXES = "indexes"
_KEPT_SCAN = "scan-"

_RECORD_NAME = re.compile(r"(?P<commit>.+?)(?:\.r(?P<attempt>[1-9][0-9]*))?\.json")
_UNIT_COMMIT = re.compile(r"(?P<modality>image|text)-(?P<unit>[0-9]{5,})")
_INDEX_RECORD = re.compile(
    r"indexes/(?P<teacher>[^/]+)/(?:(?P<text>text)|image(?:-view(?P<view>[1-9][0-9]*))?)\.json"
)
_CATALOG_PART = re.compile(r"catalog/(?P<table>[a-z]+)-(?P<part>[0-9]{5,})\.parquet")
_GENERATION_RECORD = re.compile(r"catalog/append-(?P<number>[0-9]{5,})\.json")
_ARRAYS_RECORD = re.compile(r"arrays-(?P<number>[0-9]{5,})\.json")
_UNIT_FILE = re.compile(
    r"teachers/[^/]+/(?:(?P<array>image|text|patch)\.zarr/c/(?P<shard>[0-9]+)(?:/0)+"
    r"|images/(?P<images>[0-9]{5,})\.parquet)|pixels/(?P<pixels>[0-9]{5,})\.(?:tar|parquet)"
)
_TEACHER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def other_modality(modality: Modality) -> Modality:
    """Return "text" for "image" and the reverse."""
    return "text" if modality == "image" else "image"


def generation_record(generation: int) -> str:
    """Return the path of the record of a generation; generation 0 is the first plan."""
    return CACHE_RECORD if generation == 0 else f"{CATALOG}/append-{generation:05d}.json"


def catalog_part(table: str, part: int) -> str:
    """Return the path of one part of a catalog table."""
    return f"{CATALOG}/{table}-{part:05d}.parquet"


def kept_scan(digest: str, part: int) -> str:
    """Return the path of a part of a scan that the planner keeps; readers ignore it."""
    return f"{CATALOG}/{_KEPT_SCAN}{digest}-{part:05d}.partial"


def is_kept_scan(name: str) -> bool:
    """Return whether a file name in catalog/ is that of a kept scan, complete or not."""
    return name.startswith(_KEPT_SCAN) and name.endswith(".partial")


def is_teacher_name(name: str) -> bool:
    """Return whether a name is allowed as a folder in teachers/."""
    return _TEACHER_NAME.fullmatch(name) is not None


def teacher_names(names: Iterable[str]) -> list[str]:
    """Return the names in teachers/ that can be the folder of a teacher."""
    return [name for name in names if is_teacher_name(name)]


def teacher_folder(teacher: str) -> str:
    """Return the folder of a teacher."""
    return f"{TEACHERS}/{teacher}"


def teacher_record(teacher: str) -> str:
    """Return the path of the record of a teacher."""
    return f"{teacher_folder(teacher)}/teacher.json"


def is_teacher_record(path: str) -> bool:
    """Return whether a path is that of the record of a teacher."""
    return path.startswith(f"{TEACHERS}/") and path.endswith("/teacher.json")


def commits_folder(teacher: str) -> str:
    """Return the folder of the unit records of a teacher."""
    return f"{teacher_folder(teacher)}/commits"


def unit_record(teacher: str, modality: Modality, unit: int, attempt: int = 0) -> str:
    """Return the path of the record of an attempt at a unit, e.g. ``.../commits/image-00003.r1.json``."""
    return f"{commits_folder(teacher)}/{unit_record_name(modality, unit, attempt)}"


def unit_record_name(modality: Modality, unit: int, attempt: int = 0) -> str:
    """Return the name of the record of an attempt at a unit, e.g. ``image-00003.r1.json``."""
    suffix = f".r{attempt}" if attempt else ""
    return f"{modality}-{unit:05d}{suffix}.json"


def pixels_unit_record(unit: int, attempt: int = 0) -> str:
    """Return the path of the record of an attempt at the kept pixels of a unit."""
    return f"{PIXELS_COMMITS}/{unit_record_name('image', unit, attempt)}"


def pixels_tar(unit: int) -> str:
    """Return the path of the kept pixels of a unit."""
    return f"{PIXELS}/{unit:05d}.tar"


def pixels_index(unit: int) -> str:
    """Return the path of the table of where each image is in the kept pixels of a unit."""
    return f"{PIXELS}/{unit:05d}.parquet"


def arrays_record(teacher: str, generation: int) -> str:
    """Return the path of the record of array shapes for a generation after the first of the teacher."""
    return f"{commits_folder(teacher)}/arrays-{generation:05d}.json"


def array_folder(teacher: str, array: ArrayName) -> str:
    """Return the folder of a Zarr array."""
    return f"{teacher_folder(teacher)}/{array}.zarr"


def array_metadata(teacher: str, array: ArrayName) -> str:
    """Return the path of the metadata of a Zarr array."""
    return f"{array_folder(teacher, array)}/zarr.json"


def rotation(teacher: str) -> str:
    """Return the folder of the rotation of int8 targets."""
    return f"{teacher_folder(teacher)}/rotation.zarr"


def matrix_metadata(folder: str) -> str:
    """Return the path of the metadata of an array of one chunk."""
    return f"{folder}/zarr.json"


def matrix_chunk(folder: str) -> str:
    """Return the path of its only chunk."""
    return f"{folder}/c/0/0"


def shard(teacher: str, array: ArrayName, unit: int) -> str:
    """Return the path of the shard of a unit: the default chunk key of Zarr."""
    zeros = {"image": "0/0", "text": "0", "patch": "0/0/0"}[array]
    return f"{array_folder(teacher, array)}/c/{unit}/{zeros}"


def patch_basis(teacher: str) -> str:
    """Return the folder of the map from hidden states to the values of patch targets."""
    return f"{teacher_folder(teacher)}/patch_basis.zarr"


def images_part(teacher: str, unit: int) -> str:
    """Return the path of the sizes and hashes of the images of a unit."""
    return f"{teacher_folder(teacher)}/images/{unit:05d}.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexId:
    """Identifies the index over the targets of one teacher and modality, and gives its paths."""

    teacher: str
    modality: Modality
    view: int = 0
    """The indexed view of images; 0 for texts."""

    @property
    def folder(self) -> str:
        """The folder of all indexes of the teacher."""
        return f"{INDEXES}/{self.teacher}"

    @property
    def stem(self) -> str:
        """The start of the paths of its files, e.g. ``indexes/so400m/image-view1``."""
        view = f"-view{self.view}" if self.view else ""
        return f"{self.folder}/{self.modality}{view}"

    @property
    def file(self) -> str:
        """The path of the index in the format of faiss."""
        return f"{self.stem}.faiss"

    @property
    def record(self) -> str:
        """The path of its record."""
        return f"{self.stem}.json"

    @property
    def state(self) -> str:
        """The path of the state of an unfinished index."""
        return f"{self.stem}.json.partial"


def parse_index_record(path: str) -> IndexId | None:
    """Return the index whose record has this path, or None for any other path."""
    match = _INDEX_RECORD.fullmatch(path)
    if match is None:
        return None
    modality: Modality = "text" if match["text"] else "image"
    return IndexId(teacher=match["teacher"], modality=modality, view=int(match["view"] or 0))


def parse_unit_record(name: str) -> tuple[Modality, int, int] | None:
    """Return (modality, unit, attempt) for the file name of a unit record, or None for any other name."""
    record = _RECORD_NAME.fullmatch(name)
    commit = _UNIT_COMMIT.fullmatch(record["commit"]) if record else None
    if record is None or commit is None:
        return None
    modality: Modality = "image" if commit["modality"] == "image" else "text"
    unit, attempt = int(commit["unit"]), int(record["attempt"] or 0)
    is_ours = unit_record_name(modality, unit, attempt) == name  # refuse other padding
    return (modality, unit, attempt) if is_ours else None


def parse_catalog_part(path: str) -> tuple[str, int] | None:
    """Return (table, part) for the path of a part of the catalog, or None for any other path."""
    match = _CATALOG_PART.fullmatch(path)
    return None if match is None else (match["table"], int(match["part"]))


def parse_generation_record(path: str) -> int | None:
    """Return the generation, 1 or later, whose record has this path, or None for any other path."""
    match = _GENERATION_RECORD.fullmatch(path)
    return None if match is None else int(match["number"])


def parse_arrays_record(name: str) -> int | None:
    """Return the generation for the file name of a record of array shapes, or None for any other name."""
    match = _ARRAYS_RECORD.fullmatch(name)
    return None if match is None else int(match["number"])


def parse_unit_file(path: str) -> tuple[Modality, int] | None:
    """Return (modality, unit) for the path of a file that a unit record names, or None for any other path."""
    match = _UNIT_FILE.fullmatch(path)
    if match is None:
        return None
    modality: Modality = "text" if match["array"] == "text" else "image"
    return modality, int(match["shard"] or match["images"] or match["pixels"])


def is_garbage_name(path: str) -> bool:
    """Return whether a path is that of a partial file or an intent, which are never data."""
    return path.endswith((".partial", ".intent"))


def record_of_staged(path: str) -> str | None:
    """Return the path of the record of a staged file ``<path>.<commit>``, or None for any other name.

    The commit is the name of the record without ``.json``: ``cache``, ``append-00001``, ``teacher``,
    ``arrays-00001``, ``image-00003`` or ``image-00003.r1``.
    """
    match = re.search(r"\.(?P<commit>[a-z]+(?:-[0-9]+)?(?:\.r[0-9]+)?)$", path)
    if match is None:
        return None
    commit, parts = match["commit"], PurePosixPath(path).parts
    if commit == "cache":
        return CACHE_RECORD
    if commit.startswith("append-"):
        return f"{CATALOG}/{commit}.json"
    if parts[0] == PIXELS:
        return f"{PIXELS_COMMITS}/{commit}.json"
    if parts[0] != TEACHERS or len(parts) < 3:
        return None
    if commit == "teacher":
        return teacher_record(parts[1])
    return f"{commits_folder(parts[1])}/{commit}.json"
