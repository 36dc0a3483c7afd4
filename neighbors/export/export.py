"""Export of embeddings for other tools: Parquet, numpy, Embedding Atlas, clip-retrieval."""

import contextlib
import secrets
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ...errors import DiskFullError, SettingError
from ...formatting import format_bytes
from ...progress import TaskProgress
from ...store.cache import Cache
from ...store.format.layout import IndexId, Modality
from ...store.io.local import FULL_DISK, sync_file, sync_folder
from ...store.io.location import lies_in
from ...store.search.index_query import resolve_index
from ...store.search.index_record import build_command
from ...store.targets.blocks import read_blocks
from .atlas import NeighborColumn, atlas_lines, atlas_schema, show_command, with_pictures
from .files import NpyFile, ParquetFile, RowsFile
from .rows import SCHEMAS, describe_rows

Format = Literal["parquet", "npy", "atlas", "clip-retrieval"]
_MODALITIES: dict[str, tuple[Modality, ...]] = {
    "images": ("image",),
    "texts": ("text",),
    "both": ("image", "text"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """Settings of export_cache."""

    out: Path
    """New folder; its parent exists."""

    format: str = "parquet"
    """parquet, npy, atlas or clip-retrieval."""

    among: str | None = None
    """images, texts or both; None: images for atlas, otherwise both."""

    teacher: str | None = None
    view: int = 0
    """View of the images."""

    thumbnails: bool = False
    """Add thumbnails to the table of images for atlas."""

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise SettingError(
                f"format must be one of {', '.join(get_args(Format))}, got {self.format!r}"
            )
        if self.among not in (None, *_MODALITIES):
            raise SettingError(f"among must be one of {', '.join(_MODALITIES)}, got {self.among!r}")

        if self.format == "clip-retrieval" and self.modalities != ("image", "text"):
            raise SettingError("clip-retrieval serves images and texts together; leave --among out")
        if self.thumbnails and (self.format != "atlas" or "image" not in self.modalities):
            raise SettingError("thumbnails go with images for atlas: --format atlas")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities to export."""
        default = "images" if self.format == "atlas" else "both"
        return _MODALITIES[self.among or default]


@dataclass(frozen=True, slots=True)
class Exported:
    """Result of an export."""

    found: dict[str, Any]
    """Plain values for JSON."""

    lines: list[str]
    """The same as lines for people."""


def export_cache(cache: Cache, config: ExportConfig, *, progress: TaskProgress) -> Exported:
    """Write a folder of files, whole or not at all; memory holds one block of rows at a time.

    Rows without a target are left out and counted.

    Raises:
        SettingError: OUT exists or cannot be made, or the cache lacks the teacher or the view.
        DiskFullError: the disk is full.
    """
    places = [
        resolve_index(cache, m, teacher=config.teacher, view=config.view if m == "image" else 0)
        for m in config.modalities
    ]
    if config.view and "image" not in config.modalities:
        raise SettingError(f"view {config.view} needs images; texts have no views")
    with _new_folder(config.out, cache) as partial:
        if config.format == "clip-retrieval":
            from .clip_retrieval import serve_lines, write_clip_retrieval  # needs faiss

            teacher = places[0].teacher
            parts = write_clip_retrieval(cache, teacher, config.view, partial, config.out, progress)
            lines = serve_lines(config.out, parts)
        else:
            parts = [_export(cache, config, place, partial, progress) for place in places]
            lines = [line for part in parts for line in _part_lines(part)]
    found = {
        "out": str(config.out),
        "format": config.format,
        "teacher": places[0].teacher,
        "view": config.view,
        "parts": parts,
    }
    return Exported(found, [f"written    {config.out}", *lines])


def _export(
    cache: Cache, config: ExportConfig, place: IndexId, folder: Path, progress: TaskProgress
) -> dict[str, Any]:
    """Write the rows of one modality; return what was written, as values for JSON."""
    targets = cache.targets(place.modality, place.teacher)
    nearby = NeighborColumn(cache, place) if config.format == "atlas" else None
    if nearby is not None and nearby.is_slow:
        command = build_command(cache, place)
        progress.say(f"exact search of all rows takes hours; build an index first: {command}")
    noun = f"{place.modality}s"
    file = _open_file(cache, config, place, folder / noun, targets.shape[-1])
    has_pictures = config.thumbnails and place.modality == "image"
    num_rows, num_without = 0, 0
    progress.start(f"writing {noun}", cache.manifest.count(place.modality))
    try:
        for block in read_blocks(targets, view=place.view):
            lines = describe_rows(cache, place.teacher, place.modality, block.rows_B)
            if has_pictures:
                lines, num_missing = with_pictures(lines, cache, place)
                num_without += num_missing
            if nearby is not None:
                lines = atlas_lines(lines, nearby.column_for(block.rows_B, block.values_BD))
            file.write(lines, block.values_BD)
            num_rows += len(block.rows_B)
            progress.advance(len(block.rows_B))
    finally:
        file.close()
    names = sorted(path.name for path in folder.glob(f"{noun}.*"))
    part: dict[str, Any] = {
        "modality": place.modality,
        "files": [str(config.out / name) for name in names],
        "num_bytes": sum((folder / name).stat().st_size for name in names),
        "rows": num_rows,
        **_left_out(cache, place, num_rows),
    }
    if nearby is not None:
        show = show_command(config.out / f"{noun}.parquet", has_pictures=has_pictures)
        part |= {"neighbors": nearby.method, "show": show}
    if has_pictures:
        part["without_picture"] = num_without
    return part


def _open_file(
    cache: Cache, config: ExportConfig, place: IndexId, stem: Path, embed_dim: int
) -> RowsFile:
    record = cache.teacher(place.teacher)
    about = {
        "teacher": record.name,
        "view": place.view,
        "catalog_digest": cache.manifest.latest.digest,
        "logit_scale": record.logit_scale,
        "logit_bias": record.logit_bias,
    }
    schema, path = SCHEMAS[place.modality], stem.with_suffix(".parquet")
    match config.format:
        case "npy":
            return NpyFile(stem.with_suffix(".npy"), schema, embed_dim, about=about)
        case "atlas":
            has_pictures = config.thumbnails and place.modality == "image"
            schema = atlas_schema(schema, has_pictures=has_pictures)
            return ParquetFile(path, schema, embed_dim, column="vector", about=about)
        case _:
            return ParquetFile(path, schema, embed_dim, column="embedding", about=about)


def _left_out(cache: Cache, place: IndexId, num_rows: int) -> dict[str, int]:
    """Return how many rows of the catalog were not written, by reason."""
    commits = cache.commits(place.teacher)
    committed = sum(commit.num_rows for commit in commits.units_of(place.modality).values())
    rejected = commits.num_rejected(place.modality)
    return {
        "rejected": rejected,
        "not_embedded": cache.manifest.count(place.modality) - committed,
        "not_finite": committed - rejected - num_rows,
    }


def _part_lines(part: dict[str, Any]) -> list[str]:
    words = {"rejected": "rejected", "not_embedded": "not embedded yet", "not_finite": "not finite"}
    left_out = [f"{part[name]:,} {word}" for name, word in words.items() if part[name]]
    noun = f"{part['modality']}s"
    names = " and ".join(Path(file).name for file in part["files"])
    lines = [
        f"{noun:<10} {part['rows']:,} in {names}, {format_bytes(part['num_bytes'])}; "
        f"left out: {', '.join(left_out) or 'none'}"
    ]
    if part.get("without_picture"):
        lines.append(
            f"thumbnails {part['without_picture']:,} are missing: file not found or unreadable"
        )
    if "show" in part:
        lines += [f"neighbors  {part['neighbors']}", f"show       {part['show']}"]
    return lines


@contextlib.contextmanager
def _new_folder(out: Path, cache: Cache) -> Generator[Path]:
    """Yield an empty folder that is renamed to ``out`` at the end, or removed after an error."""
    if out.exists() or out.is_symlink():
        raise SettingError(f"{out} exists; name a new folder, or remove it")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise SettingError(f"{out} cannot be made: there is no folder {parent}; make it first")
    if lies_in(parent, cache.root):
        raise SettingError(f"{out} is in the cache; name a folder outside of {cache.root}")
    partial = parent / f"{out.name}.{secrets.token_hex(6)}.partial"
    try:
        partial.mkdir()
    except OSError as error:
        raise SettingError(f"{out} cannot be made: {error.strerror}; name another folder") from None
    try:
        yield partial
        for path in partial.rglob("*"):
            if path.is_dir():
                sync_folder(path)
            else:
                with path.open("rb+") as file:
                    sync_file(file.fileno())
        sync_folder(partial)
        partial.rename(out)
        sync_folder(parent)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise DiskFullError(
                f"no space left on the disk of {out}; the export was removed"
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
