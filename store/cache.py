"""Opening and reading a cache: open_cache and the class Cache."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

import polars as pl
from upath import UPath

from ..errors import DamagedCacheError, DiskFullError, NotACacheError, SettingError
from ..formatting import format_bytes, format_count
from .format import layout
from .format.catalog import Part, Table, read_table, scan_table
from .format.kept_pixels import KeptPixels, read_kept_pixels
from .format.layout import MODALITIES, Modality
from .format.manifest import Manifest, SourceRecord, Span, read_manifest
from .format.patch_map import PatchMap, read_patch_map
from .format.rotation import read_codec
from .format.row_encoding import Float16Codec, RowCodec
from .format.shard import ArrayLayout
from .format.teacher_record import TeacherRecord, read_teachers
from .format.unit_records import CommittedUnits, read_committed_units
from .format.views import ViewPolicy
from .io.download_cache import RAISE_LIMIT, LocalCopies
from .io.foreign_files import is_stray
from .io.location import Location, parse_location, relocate
from .io.storage import Storage, open_storage
from .targets.attempts import fetch_unit_file
from .targets.patches import PatchTargets
from .targets.targets import Targets

_REJECTED_ROW = {"row": pl.Int64, "reason": pl.String}
_REJECTED = {"teacher": pl.String, "modality": pl.String, **_REJECTED_ROW}


def open_cache(
    path: str | PathLike[str] | UPath,
    *,
    corpus_roots: Mapping[str, str] | None = None,
    copies: LocalCopies | None = None,
) -> "Cache":
    """Return a cache. An unfinished cache opens too, with what is committed.

    Args:
        path: the folder or URL that contains cache.json.
        corpus_roots: old folder to new folder, if the corpus was moved after it was planned.
        copies: where local copies of objects are kept, for a cache in an object store; None: the
            default folder, within four fifths of the free space of its disk, the copies included.

    Raises:
        SettingError: the URL is invalid or not supported.
        NotACacheError: there is no cache.
        FormatVersionError: the format version is not supported.
        DamagedCacheError: a record of the catalog or of a teacher is damaged.
    """
    return Cache(parse_location(path), corpus_roots=corpus_roots or {}, copies=copies)


class Cache:
    """A cache, read-only. It can be pickled. docs/reference/format.md describes the columns of its tables."""

    def __init__(
        self,
        root: Location,
        *,
        corpus_roots: Mapping[str, str],
        copies: LocalCopies | None = None,
    ) -> None:
        self.root = root
        self._copies = copies
        self.files = open_storage(root, copies)
        self.corpus_roots = dict(corpus_roots)
        self.manifest: Manifest = read_manifest(self.files)
        self.teacher_records: dict[str, TeacherRecord] = read_teachers(self.files)
        self._commits: dict[str, CommittedUnits] = {}
        self._previous: dict[str, CommittedUnits] = {}
        self._targets: dict[tuple[str, Modality], Targets] = {}
        self._codecs: dict[str, RowCodec] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_targets": {}}

    def renewed(self) -> "Cache":
        """Return the cache as it is now. Records that were read are not read again."""
        now = Cache(self.root, corpus_roots=self.corpus_roots, copies=self._copies)
        now._previous = {**self._previous, **self._commits}
        return now

    def __repr__(self) -> str:
        teachers = ", ".join(self.teachers) or "no teacher"
        return f"<Cache {self.root}: {self.num_samples:,} samples, {self.num_texts:,} texts, {teachers}>"

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of the teachers, sorted."""
        return tuple(self.teacher_records)

    @property
    def num_samples(self) -> int:
        """The number of samples. Arrays may have more rows, because of gaps."""
        return self.manifest.count("image")

    @property
    def num_texts(self) -> int:
        """The number of unique texts, prompts included."""
        return self.manifest.count("text")

    @property
    def num_views(self) -> int:
        """The number of views of each image."""
        return self.manifest.views.num_views

    @property
    def view_policy(self) -> ViewPolicy:
        """The policy by which the views were drawn."""
        return self.manifest.views

    @property
    def shard_rows(self) -> int:
        """The number of rows in a unit."""
        return self.manifest.shard_rows

    def samples(self) -> pl.LazyFrame:
        """Return the samples by row.

        Columns: row, key, file, member, offset, length, row_group, index, label, source_sha256.
        """
        return self.table("samples")

    def captions(self) -> pl.LazyFrame:
        """Return the captions of images by row, without prompts: row, text_row, lang, kind."""
        return self.table("captions")

    def texts(self) -> pl.LazyFrame:
        """Return the unique texts by text_row: text_row, text."""
        return self.table("texts")

    def table(self, table: Table, among: Span | None = None) -> pl.LazyFrame:
        """Return any table of the catalog, including files, views, prompts and problems.

        Args:
            table: the table.
            among: read only the parts that may contain these rows, as Manifest.parts defines them; a
                billion samples have a thousand parts.
        """
        found = scan_table(table, self._part_files(self.manifest.parts(table, among)))
        if table == "views":
            return found.select("row", "view", *self.view_policy.columns)
        return found

    def rejected(self, teacher: str | None = None, *, first: int | None = None) -> pl.LazyFrame:
        """Return the rejected rows in order: teacher, modality, row, key (null for texts), reason.

        Args:
            teacher: only of this teacher; None: of all.
            first: only this many rows.
        """
        frames = [pl.DataFrame(schema=_REJECTED)]
        for name in self.teachers if teacher is None else (self.teacher(teacher).name,):
            for modality in MODALITIES:
                left = None if first is None else first - sum(frame.height for frame in frames)
                found = dict(itertools.islice(self.commits(name).rejected(modality), left))
                rows = pl.DataFrame({"row": found.keys(), "reason": found.values()}, _REJECTED_ROW)
                frames.append(
                    rows.select(
                        pl.lit(name).alias("teacher"), pl.lit(modality).alias("modality"), pl.all()
                    )
                )
        frame = pl.concat(frames)
        images = frame.filter(modality="image")["row"].unique()
        keys = self._samples_of(images).select("row", "key", modality=pl.lit("image"))
        joined = frame.lazy().join(keys, on=["modality", "row"], how="left", maintain_order="left")
        return joined.select("teacher", "modality", "row", "key", "reason")

    def _samples_of(self, rows: pl.Series) -> pl.LazyFrame:
        """Return the samples of some rows, reading the parts between the first row and the last."""
        low, high = cast("int | None", rows.min()) or 0, cast("int | None", rows.max())
        among = Span(first=low, count=0 if high is None else high - low + 1)
        return self.table("samples", among).filter(pl.col("row").is_in(rows.implode()))

    def teacher(self, name: str | None = None) -> TeacherRecord:
        """Return the record of a teacher.

        Args:
            name: its name; None: the only teacher.

        Raises:
            SettingError: there is no such teacher, or there are several and none is named.
            NotACacheError: the cache has no teacher yet.
        """
        if name is None and len(self.teacher_records) == 1:
            return next(iter(self.teacher_records.values()))
        if not self.teacher_records:
            raise NotACacheError(f"{self.root} has no teacher yet; run siglip2-cache build")
        if name is None:
            raise SettingError(
                f"{self.root} has several teachers: {', '.join(self.teachers)}; name one (--teacher)"
            )
        if name not in self.teacher_records:
            raise SettingError(
                f"no teacher {name!r} in {self.root}; it has {', '.join(self.teachers)}"
            )
        return self.teacher_records[name]

    def commits(self, teacher: str | None = None) -> CommittedUnits:
        """Return the committed units of a teacher, as of the first call."""
        name = self.teacher(teacher).name
        if name not in self._commits:
            self._commits[name] = read_committed_units(
                self.files,
                layout.commits_folder(name),
                shard_rows=self.shard_rows,
                previous=self._previous.get(name),
            )
        return self._commits[name]

    def kept_pixels(self) -> KeptPixels | None:
        """Return the kept pixels, as they are now; None if there are none."""
        return read_kept_pixels(self.files, shard_rows=self.shard_rows)

    def image_targets(self, teacher: str | None = None) -> Targets:
        """Return the image targets of a teacher; None: the only teacher."""
        return self.targets("image", teacher)

    def text_targets(self, teacher: str | None = None) -> Targets:
        """Return the text targets of a teacher; None: the only teacher."""
        return self.targets("text", teacher)

    def targets(self, modality: Modality, teacher: str | None = None) -> Targets:
        """Return the image or text targets of a teacher; None: the only teacher.

        The first call takes time in proportion to the units; the result is kept.
        """
        record = self.teacher(teacher)
        key = (record.name, modality)
        if key not in self._targets:
            array = self.array_layout(modality, record.name)
            commits, codec = self.commits(record.name), self.codec(record.name)
            self._targets[key] = Targets(
                self.files, self.manifest, commits, record.name, array, codec
            )
        return self._targets[key]

    def patch_targets(self, teacher: str | None = None) -> PatchTargets:
        """Return the patch targets of a teacher; None: the only teacher.

        Raises:
            SettingError: it has none.
            DamagedCacheError: their map is missing or damaged.
        """
        record = self.teacher(teacher)
        patch_map = self.patch_map(record.name)
        if patch_map is None:
            raise SettingError(
                f"teacher {record.name} of {self.root} has no patch targets; they are made by siglip2-cache "
                "build --patch-targets GRID, in a new cache or under another --teacher-name"
            )
        array = self.manifest.patch_layout(patch_map.settings)
        commits = self.commits(record.name)
        stored = Targets(  # its rows are read as they are stored
            self.files, self.manifest, commits, record.name, array, Float16Codec()
        )
        return PatchTargets(stored, patch_map)

    def patch_map(self, teacher: str | None = None) -> PatchMap | None:
        """Return the map of the patch targets of a teacher; None if it has none.

        Raises:
            DamagedCacheError: it is missing or damaged.
        """
        return read_patch_map(self.files, self.teacher(teacher))

    def array_layout(self, modality: Modality, teacher: str | None = None) -> ArrayLayout:
        """Return the layout of an array of a teacher on disk."""
        record = self.teacher(teacher)
        return self.manifest.array_layout(modality, record.embed_dim, record.encoding)

    def codec(self, teacher: str | None = None) -> RowCodec:
        """Return what converts between the embeddings of a teacher and its stored rows.

        Raises:
            DamagedCacheError: the rotation of int8 targets is missing or damaged.
        """
        record = self.teacher(teacher)
        if record.name not in self._codecs:
            self._codecs[record.name] = read_codec(self.files, record)
        return self._codecs[record.name]

    def seen(self, teacher: str, unit: int) -> pl.DataFrame:
        """Return the images of a unit as a teacher embedded them: row, width, height, sha256."""
        path = layout.images_part(teacher, unit)
        try:
            commit = self.commits(teacher).units["image", unit]
            found, _ = fetch_unit_file(
                self.files,
                path,
                commit.files[path],
                teacher=teacher,
                modality="image",
                unit=unit,
            )
            return _without_rows(read_table(found), commit.rejected)
        except DiskFullError:
            raise
        except (KeyError, OSError, pl.exceptions.PolarsError):
            raise DamagedCacheError(
                f"{self.files.where(path)} is missing or damaged; run siglip2-cache verify"
            ) from None

    def part_file(self, part: Part) -> Path:
        """Return one part of a catalog table as a local file."""
        [file] = self._part_files([part])
        return file

    def _part_files(self, parts: Sequence[Part]) -> list[Path]:
        num_bytes = sum(part.description["num_bytes"] for part in parts)
        if not self.files.fits_locally(num_bytes):
            raise DiskFullError(
                f"the {format_count(len(parts), 'part')} of a table of {self.root} take "
                f"{format_bytes(num_bytes)} together, more than the limit of local copies; "
                f"{RAISE_LIMIT}"
            )
        try:
            return self.files.fetch_all((part.path, part.description) for part in parts)
        except FileNotFoundError as error:
            raise DamagedCacheError(
                f"a part of the catalog of {self.root} is missing ({error}); restore it from a "
                "backup, or build the cache again"
            ) from None

    @property
    def sources(self) -> dict[str, SourceRecord]:
        """The sources of the cache by namespace (empty for none)."""
        return {source.name: source for source in self.manifest.sources}

    def corpus_root(self, source: str) -> Location:
        """Return the current root of a source: as recorded, or moved by ``corpus_roots``."""
        return relocate(self.sources[source].root, self.corpus_roots)


def refuse_foreign_folder(files: Storage) -> None:
    """Refuse to make a cache in a folder that holds something else, or in a file.

    Raises:
        SettingError: names what is there.
    """
    if files.root_kind() == "file":
        raise SettingError(f"{files.root} is a file; name a folder for the cache")
    ours = (layout.CATALOG, f"{layout.CACHE_RECORD}.", ".")
    names = [name for name in files.names("") if not is_stray(name)]
    foreign = [name for name in names if not name.startswith(ours)]
    if foreign:
        raise SettingError(
            f"{files.root} is not empty and is not a cache (it holds {foreign[0]}); "
            "name an empty or a new folder for the cache"
        )


def _without_rows(seen: pl.DataFrame, rejected: Collection[int]) -> pl.DataFrame:
    """Return the images with nulls in the rows that were rejected when the record was read.

    A later attempt may have embedded them.
    """
    if not rejected:
        return seen
    is_theirs = pl.col("row").is_in(list(rejected))
    return seen.with_columns(
        pl.when(~is_theirs).then(pl.col(name)) for name in seen.columns if name != "row"
    )
