"""open_cache: what people use to read a cache."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

import polars as pl
from upath import UPath

from ..errors import DamagedCacheError, DiskFullError, NotACacheError, SettingError
from .format import layout
from .format.catalog import Part, Table, read_table, scan_table
from .format.layout import MODALITIES, Modality
from .format.manifest import Manifest, SourceRecord, Span, read_manifest
from .format.teacher_record import TeacherRecord, read_teachers
from .format.unit_records import CommittedUnits, read_committed_units
from .format.views import ViewPolicy
from .io.download_cache import LocalCopies
from .io.location import Location, is_url, join, parse_location, relative_to
from .io.storage import open_storage
from .targets.attempts import fetch_unit_file
from .targets.targets import Targets

_REJECTED_ROW = {"row": pl.Int64, "reason": pl.String}
_REJECTED = {"teacher": pl.String, "modality": pl.String, **_REJECTED_ROW}


def open_cache(
    path: str | PathLike[str] | UPath,
    *,
    corpus_roots: Mapping[str, str] | None = None,
    copies: LocalCopies | None = None,
) -> "Cache":
    """Return the cache in a folder. Unfinished caches open too, with what is committed.

    Args:
        path: the folder that holds cache.json, on this machine or by URL.
        corpus_roots: old folder to new folder, where the corpus has moved since it was planned.
        copies: of a cache in an object store, where what is read of it is kept on this machine;
            None: the default folder, within four fifths of its disk.

    Raises:
        SettingError: the URL is none that can be read here.
        NotACacheError: there is no cache.
        FormatVersionError: it was written by another format version.
        DamagedCacheError: a record of its catalog or of a teacher is damaged.
    """
    return Cache(parse_location(path), corpus_roots=corpus_roots or {}, copies=copies)


class Cache:
    """A cache, read-only. Picklable; columns of its tables are those of docs/format.md."""

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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_targets": {}}

    def renewed(self) -> "Cache":
        """Return the cache as it is now. Records of units that were read are not read again."""
        now = Cache(self.root, corpus_roots=self.corpus_roots, copies=self._copies)
        now._previous = {**self._previous, **self._commits}
        return now

    def __repr__(self) -> str:
        teachers = ", ".join(self.teachers) or "no teacher"
        return f"<Cache {self.root}: {self.num_samples:,} samples, {self.num_texts:,} texts, {teachers}>"

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers, sorted."""
        return tuple(self.teacher_records)

    @property
    def num_samples(self) -> int:
        """Samples in the catalog (rows of the arrays may be more: gaps)."""
        return self.manifest.count("image")

    @property
    def num_texts(self) -> int:
        """Unique texts in the catalog, prompts included."""
        return self.manifest.count("text")

    @property
    def num_views(self) -> int:
        """Views of each image."""
        return self.manifest.views.num_views

    @property
    def view_policy(self) -> ViewPolicy:
        """How the views were drawn."""
        return self.manifest.views

    @property
    def shard_rows(self) -> int:
        """Rows in one unit."""
        return self.manifest.shard_rows

    def samples(self) -> pl.LazyFrame:
        """row, key, file, member, offset, length, row_group, index, label, source_sha256; by row."""
        return self.table("samples")

    def captions(self) -> pl.LazyFrame:
        """row, text_row, lang; one line a caption of an image, by row. Prompts are not among them."""
        return self.table("captions")

    def texts(self) -> pl.LazyFrame:
        """text_row, text; one line a unique text, by text_row."""
        return self.table("texts")

    def table(self, table: Table, among: Span | None = None) -> pl.LazyFrame:
        """Return any table of the catalog: also files, views, prompts and problems.

        Where ``among`` is given only the parts that may hold these rows are looked at
        (Manifest.parts): a billion samples have a thousand, and more of views.
        """
        parts = self.manifest.parts(table, among)
        return scan_table(table, self._part_files(parts))

    def rejected(self, teacher: str | None = None, *, first: int | None = None) -> pl.LazyFrame:
        """teacher, modality, row, key, reason; one line a rejected row (key null for texts), in order.

        ``first``: only so many lines, without a look at the others.
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
        """Return the samples of some rows, from the parts between the first of them and the last."""
        low, high = cast("int | None", rows.min()) or 0, cast("int | None", rows.max())
        among = Span(first=low, count=0 if high is None else high - low + 1)
        return self.table("samples", among).filter(pl.col("row").is_in(rows.implode()))

    def teacher(self, name: str | None = None) -> TeacherRecord:
        """Return a teacher's record; None is the only teacher there is.

        Raises:
            SettingError: no such teacher, or several and none named.
        """
        if name is None and len(self.teacher_records) == 1:
            return next(iter(self.teacher_records.values()))
        if not self.teacher_records:
            raise NotACacheError(f"{self.root} has no teacher yet; run siglip2-cache build")
        if name is None:
            raise SettingError(
                f"{self.root} has several teachers, name one: {', '.join(self.teachers)}"
            )
        if name not in self.teacher_records:
            raise SettingError(
                f"no teacher {name!r} in {self.root}; it has {', '.join(self.teachers)}"
            )
        return self.teacher_records[name]

    def commits(self, teacher: str | None = None) -> CommittedUnits:
        """Return a teacher's committed units as they were when first asked for."""
        name = self.teacher(teacher).name
        if name not in self._commits:
            self._commits[name] = read_committed_units(
                self.files, name, shard_rows=self.shard_rows, previous=self._previous.get(name)
            )
        return self._commits[name]

    def image_targets(self, teacher: str | None = None) -> Targets:
        """Return the image targets of a teacher; None is the only one."""
        return self.targets("image", teacher)

    def text_targets(self, teacher: str | None = None) -> Targets:
        """Return the text targets of a teacher; None is the only one."""
        return self.targets("text", teacher)

    def targets(self, modality: Modality, teacher: str | None = None) -> Targets:
        """Return the targets of images or of texts of a teacher; None is the only one.

        They are made when first asked for, which takes time in proportion to the units, and kept.
        """
        record = self.teacher(teacher)
        place = (record.name, modality)
        if place not in self._targets:
            array = self.manifest.array_layout(modality, record.embed_dim)
            commits = self.commits(record.name)
            self._targets[place] = Targets(self.files, self.manifest, commits, record.name, array)
        return self._targets[place]

    def seen(self, teacher: str, unit: int) -> pl.DataFrame:
        """Return row, width, height, sha256: the pictures of an image unit as a teacher saw them."""
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
        """Return one part of a catalog table as a file of this machine."""
        [file] = self._part_files([part])
        return file

    def _part_files(self, parts: Sequence[Part]) -> list[Path]:
        try:
            return self.files.fetch_all((part.path, part.described) for part in parts)
        except FileNotFoundError as error:
            raise DamagedCacheError(
                f"a part of the catalog of {self.root} is missing ({error}); restore it from a "
                "backup, or build the cache anew"
            ) from None

    @property
    def sources(self) -> dict[str, SourceRecord]:
        """The corpora of the cache by namespace (empty for none)."""
        return {source.name: source for source in self.manifest.sources}

    def corpus_root(self, source: str) -> Location:
        """Return where a source's files are now: its recorded root, or where corpus_roots moves it."""
        return relocate(self.sources[source].root, self.corpus_roots)


def _without_rows(seen: pl.DataFrame, rejected: Collection[int]) -> pl.DataFrame:
    """Return what was seen, null for the rows that were rejected when the record was read: an attempt
    that was committed since may have made them."""
    if not rejected:
        return seen
    is_theirs = pl.col("row").is_in(list(rejected))
    return seen.with_columns(
        pl.when(~is_theirs).then(pl.col(name)) for name in seen.columns if name != "row"
    )


def relocate(folder: str, corpus_roots: Mapping[str, str]) -> Location:
    """Return a folder or URL with its longest matching old prefix replaced by the new one.

    Where the new folder lies below the old one, what is in it already has been moved before.
    """
    for old in sorted(corpus_roots, key=len, reverse=True):
        new = corpus_roots[old]
        if relative_to(folder, new) is not None and relative_to(new, old) is not None:
            break
        way = relative_to(folder, old)
        if way is not None:
            return join(_as_recorded(new), way) if way else _as_recorded(new)
    return _as_recorded(folder)


def _as_recorded(text: str) -> Location:
    return parse_location(text) if is_url(text) else Path(text)
