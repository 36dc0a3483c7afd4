"""The formulas of an estimate, group by group: every number with the formula it comes from."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ...formatting import format_bytes
from ...siglip import TEXT_FORMULA, VIEW_FORMULA, Architecture
from ...store.format.catalog import PART_ROWS, Table
from ...store.format.layout import Modality
from ...store.format.patch_encoding import CELL
from ...store.format.pixel_settings import expected_bytes
from ...store.format.row_encoding import FLOAT16, parse_encoding
from ...store.format.shard import ArrayLayout
from ...store.io.range_file import PIECE_BYTES
from ..planning.config import default_shard_rows
from ..teacher.planned_patches import planned_patches
from .config import PEAK_TFLOPS, EstimateConfig
from .disk import IMAGE_BYTES

SAMPLE_BYTES, VIEW_BYTES, TEXT_BYTES, CAPTION_BYTES, FILE_BYTES = 7, 16, 34, 4, 6
"""Expected bytes of a row in the catalog's Parquet, compressed: a sample in an archive, a view, a text with
its first caption, another caption of that text, a file. Web corpora measure so; longer keys and captions
take more."""

_RECORD_BYTES = 800
"""Bytes of a unit's record."""

_ASSUMED_IMAGE_BYTES = 100_000

_LONE_READ_BYTES = 64 << 10
"""Bytes of a request for one tar header, if the image before it is too large to read through."""

_READ_THROUGH_BYTES = PIECE_BYTES // 2
"""Images up to this size are read through, not skipped."""

_TAR_SAMPLE_BYTES = 1_792
"""Bytes of a tar for each sample beside its image: a header, 256 of padding, and a caption member."""

_DECODE_S = 0.0035
"""Of one core, for a photograph of 640 x 426 to 224 px: benchmarks/results/decode_xeon-2core_202611.md."""

_SCAN_SAMPLES_PER_S, _FREEZE_SAMPLES_PER_S, _VIEWS_PER_S = 15_000, 110_000, 500_000
_KEPT_SAMPLE_BYTES, _SCRATCH_SAMPLE_BYTES = 76, 232
_RECORDS_PER_S, _DRIVER_BYTES, _RECORD_MEMORY_BYTES = 20_000, 120_000_000, 2_000
"""Of one core, its memory and its disk: benchmarks/results/scale_xeon-2core_202611.md."""

_MANY_UNITS = 100_000
_LARGE_SHARD_BYTES = 200_000_000

Unit = Literal["", "B", "B/s", "FLOP", "FLOP/s", "s", "h", "/s"]
_Row = tuple[str, float, Unit, str]
"""Name, value, unit and formula of a Quantity."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number and where it comes from."""

    group: str
    name: str
    value: float
    unit: Unit
    formula: str


class Formulas:
    """The formulas of one estimate, group by group."""

    def __init__(self, config: EstimateConfig, arch: Architecture) -> None:
        """Derive what several formulas need."""
        self.config, self.arch = config, arch
        self.images, self.texts = config.num_images, config.num_unique_texts
        self.views, self.dim = config.num_views, arch.embed_dim
        self.encoding = parse_encoding(config.targets)
        extra = self.encoding.num_extra
        self.vector = f"({self.dim:,} + {extra}) B" if extra else f"{self.dim:,} x 2 B"
        self.patches = planned_patches(arch, config.patch_targets, config.patch_dims)
        self.rows = config.shard_rows or default_shard_rows(self.views)
        self.image_units, self.text_units = (
            -(-self.images // self.rows),
            -(-self.texts // self.rows),
        )
        self.units = self.image_units + self.text_units
        self.tars = -(-self.images // config.images_per_tar)
        self.lines: dict[Table, int] = {
            "files": self.tars,
            "samples": self.images,
            "captions": config.num_captions,
            "texts": self.texts,
            "views": self.images * self.views
            if self.views > 1
            else 0,  # no box of a lone whole image
        }
        self.peak = config.peak_tflops or PEAK_TFLOPS[config.gpu]
        flops_per_s = self.peak * 1e12 * config.mfu
        self.images_per_s = config.images_per_s or flops_per_s / (self.views * arch.flops_of_view)
        self.texts_per_s = config.texts_per_s or flops_per_s / arch.flops_of_text
        self.image_bytes = config.image_bytes or _ASSUMED_IMAGE_BYTES
        assumed = "" if config.image_bytes else " an image (assumed)"
        self.image_size = f"{format_bytes(self.image_bytes)}{assumed}"

    def _array(self, modality: Modality, shard_rows: int) -> ArrayLayout:
        is_image = modality == "image"
        return ArrayLayout(
            modality=modality,
            num_rows=self.images if is_image else self.texts,
            num_views=self.views if is_image else 1,
            embed_dim=self.dim,
            encoding=self.encoding,
            shard_rows=shard_rows,
        )

    def _patch_array(self) -> ArrayLayout | None:
        if self.patches is None:
            return None
        return replace(
            self._array("image", self.rows),
            embed_dim=self.patches.dim,
            encoding=CELL,
            num_cells=self.patches.num_cells,
        )

    def _view_of_cells(self) -> str:
        assert self.patches is not None
        return f"{self.patches.num_cells:,} cells x ({self.patches.dim:,} + {CELL.num_extra}) B"

    def quantities(self) -> Iterator[Quantity]:
        """Yield every number, group by group."""
        groups = {
            "units": self._units,
            "objects": self._objects,
            "bytes": self._bytes,
            "arithmetic": self._arithmetic,
            "a worker": self._worker,
            "time": self._time,
            "network": self._network,
            "planning": self._planning,
            "resume": self._resume,
            "training": self._training,
        }
        for group, rows in groups.items():
            yield from (Quantity(group, *row) for row in rows())

    def _units(self) -> Iterator[_Row]:
        rows, views = f"{self.rows:,} rows", self.views
        why = "" if self.config.shard_rows else f" (16,384 / {views} views, to a power of two)"
        yield "image_units", self.image_units, "", f"{self.images:,} images / {rows}{why}"
        yield "text_units", self.text_units, "", f"{self.texts:,} texts / {rows}"
        shard = self._array("image", self.rows).shard_bytes(self.rows)
        yield (
            "image_shard",
            shard,
            "B",
            f"{rows} x {views} views x {self.vector}, and an index",
        )
        patches = self._patch_array()
        if patches is not None:
            shard += patches.shard_bytes(self.rows)
            formula = f"{rows} x {views} views x {self._view_of_cells()}, and an index"
            yield "patch_shard", patches.shard_bytes(self.rows), "B", formula
        how = "3 shards: one filling, one being written, its encoded bytes; without teacher and pixels"
        yield "worker_memory", 3 * shard, "B", how

    def _objects(self) -> Iterator[_Row]:
        parts = {table: -(-lines // PART_ROWS) for table, lines in self.lines.items()}
        named = ", ".join(f"{table} {count:,}" for table, count in parts.items() if count)
        counts = {
            "shards": (self.units, "one per unit"),
            **self._patch_objects(),
            "image_tables": (self.image_units, "one per image unit"),
            "records": (self.units, "one per unit"),
            "catalog_parts": (sum(parts.values()), f"of {PART_ROWS:,} lines: {named}"),
            **self._kept_objects(),
            "settings": (4, "cache.json, teacher.json, a zarr.json for each modality"),
            **self._rotation_objects(),
        }
        for name, (count, formula) in counts.items():
            yield name, count, "", formula
        total = sum(count for count, _ in counts.values())
        yield "objects", total, "", "the sum; each is written once"

    def _rotation_objects(self) -> dict[str, tuple[int, str]]:
        if self.encoding == FLOAT16:
            return {}
        return {"rotation": (2, "of int8 targets: its zarr.json and its chunk")}

    def _patch_objects(self) -> dict[str, tuple[int, str]]:
        if self.patches is None:
            return {}
        formula = "a shard for each image unit, the zarr.json of both arrays, and the map's chunk"
        return {"patch_targets": (self.image_units + 3, formula)}

    def _kept_objects(self) -> dict[str, tuple[int, str]]:
        if self.config.keep_pixels is None:
            return {}
        formula = "a tar, a table and a record for each image unit, and pixels.json"
        return {"kept_pixels": (3 * self.image_units + 1, formula)}

    def _bytes(self) -> Iterator[_Row]:
        images, texts, lines = self.images, self.texts, self.lines
        image_array, text_array = self._array("image", self.rows), self._array("text", self.rows)
        index = f"and 16 B of index for {image_array.chunk_rows} rows"
        more = lines["captions"] - texts
        sizes = {
            "image_targets": (
                _array_bytes(image_array),
                f"{images:,} images x {self.views} views x {self.vector}, {index}",
            ),
            "text_targets": (_array_bytes(text_array), f"{texts:,} texts x {self.vector}, {index}"),
            "pictures": (
                IMAGE_BYTES * images,
                f"{images:,} images x {IMAGE_BYTES} B: sha256, size",
            ),
        }
        expected = {
            "samples": (images, "images", SAMPLE_BYTES, ""),
            "files": (self.tars, "tars", FILE_BYTES, ""),
            "views": (lines["views"], "views", VIEW_BYTES, ""),
            "texts": (texts, "texts", TEXT_BYTES, ", one caption each"),
            "captions": (more, "more captions", CAPTION_BYTES, ""),
        }
        for name, (count, what, each, and_more) in expected.items():
            sizes[name] = (each * count, f"{count:,} {what} x {each} B{and_more} (expected)")
        patches = self._patch_array()
        if patches is not None:
            formula = f"{images:,} images x {self.views} views x {self._view_of_cells()}, {index}"
            sizes["patch_targets"] = (_array_bytes(patches), formula)
        sizes["unit_records"] = (
            _RECORD_BYTES * self.units,
            f"{self.units:,} units x {_RECORD_BYTES} B",
        )
        if (short_side := self.config.keep_pixels) is not None:
            each = expected_bytes(short_side)
            formula = f"{images:,} images x {each:,} B (expected of {short_side} px at quality 90)"
            sizes["kept_pixels"] = (each * images, formula)
        for name, (num_bytes, formula) in sizes.items():
            if num_bytes:
                yield name, num_bytes, "B", formula
        yield "bytes", sum(size for size, _ in sizes.values()), "B", "the sum"

    def _arithmetic(self) -> Iterator[_Row]:
        arch = self.arch
        most = ", N is the maximum" if arch.is_naflex else ""
        formula = f"{VIEW_FORMULA}; {_letters(arch.view_sizes)}{most}"
        yield "view", arch.flops_of_view, "FLOP", formula
        yield "text", arch.flops_of_text, "FLOP", f"{TEXT_FORMULA}; {_letters(arch.text_sizes)}"
        all_images = self.images * self.views * arch.flops_of_view
        yield (
            "all_images",
            all_images,
            "FLOP",
            f"{self.images:,} images x {self.views} views x view",
        )
        yield "all_texts", self.texts * arch.flops_of_text, "FLOP", f"{self.texts:,} texts x text"

    def _worker(self) -> Iterator[_Row]:
        config, arch = self.config, self.arch
        vendor = "as given" if config.peak_tflops else f"{config.gpu}, data sheet"
        formula = f"{self.peak:,g} TFLOP/s ({vendor}) x {config.mfu:g} (assumed)"
        yield "gpu", self.peak * 1e12 * config.mfu, "FLOP/s", formula
        formula = f"gpu / ({self.views} views x view)"
        if config.images_per_s is not None:
            formula = self._measured(config.images_per_s * self.views * arch.flops_of_view)
        yield "images_per_s", self.images_per_s, "/s", formula
        formula = "gpu / text"
        if config.texts_per_s is not None:
            formula = self._measured(config.texts_per_s * arch.flops_of_text)
        yield "texts_per_s", self.texts_per_s, "/s", formula
        formula = (
            f"images per s x {_DECODE_S * 1000:g} ms: a photograph of 640 x 426 to 224 px, on a Xeon "
            "(measured); larger ones and more views take more"
        )
        yield "decoding_cores", self.images_per_s * _DECODE_S, "", formula

    def _measured(self, flops_per_s: float) -> str:
        share = flops_per_s / (self.peak * 1e12)
        return f"as given, measured: {share:.2g} of {self.peak:,g} TFLOP/s"

    def _time(self) -> Iterator[_Row]:
        gpus, image_h = self.config.num_gpus, self.images / self.images_per_s / 3600
        text_h = self.texts / self.texts_per_s / 3600
        yield "gpu_hours_images", image_h, "h", f"{self.images:,} / images per s / 3600"
        yield "gpu_hours_texts", text_h, "h", f"{self.texts:,} / texts per s / 3600"
        yield "gpu_hours", image_h + text_h, "h", "the sum"
        yield "wall_time", (image_h + text_h) * 3600 / gpus, "s", f"gpu hours / {gpus:,} workers"
        formula = f"{self.rows:,} rows / images per s: the most that a killed worker loses"
        yield "image_unit_time", self.rows / self.images_per_s, "s", formula

    def _network(self) -> Iterator[_Row]:
        gpus, rate = self.config.num_gpus, self.images_per_s
        patches = self._patch_array()
        row_bytes = self._array("image", self.rows).row_bytes + IMAGE_BYTES
        row_bytes += 0 if patches is None else patches.row_bytes
        read = rate * self.image_bytes
        yield "read_by_a_worker", read, "B/s", f"images per s x {self.image_size}"
        formula = f"images per s x {row_bytes:,} B of targets and pictures"
        yield "written_by_a_worker", rate * row_bytes, "B/s", formula
        yield "read_by_all", read * gpus, "B/s", f"{gpus:,} workers x read by a worker"
        formula = f"{gpus:,} workers x images per s: one ranged read each"
        yield "requests_by_all", rate * gpus, "/s", formula

    def _planning(self) -> Iterator[_Row]:
        images, tars, each = self.images, self.tars, self.config.images_per_tar
        yield "tars", tars, "", f"{images:,} images / {each:,} per tar"
        num_bytes, requests = images * _LONE_READ_BYTES, images
        what = f"{images:,} headers x {_LONE_READ_BYTES:,} B: images are skipped"
        how = "one per image"
        if self.image_bytes <= _READ_THROUGH_BYTES:
            sample = self.image_bytes + _TAR_SAMPLE_BYTES
            num_bytes = images * sample
            requests = tars * math.ceil(min(each, images) * sample / PIECE_BYTES)
            in_tar = f"{_TAR_SAMPLE_BYTES:,} B of tar"
            what = f"{images:,} x ({self.image_size} + {in_tar}), read through"
            how = f"{tars:,} tars in pieces of {PIECE_BYTES:,} B"
        yield "remote_bytes", num_bytes, "B", f"{what}; local tars: only headers"
        yield "remote_requests", requests, "", how
        formula = f"{images:,} / {_SCAN_SAMPLES_PER_S:,} per second and core (measured, local tars)"
        yield "scan_time", images / _SCAN_SAMPLES_PER_S, "s", formula
        views = self.lines["views"]
        drawn = f" + {views:,} views / {_VIEWS_PER_S:,}" if views else ""
        formula = (
            f"{images:,} / {_FREEZE_SAMPLES_PER_S:,} per second{drawn} (measured), one process"
        )
        yield "freeze_time", images / _FREEZE_SAMPLES_PER_S + views / _VIEWS_PER_S, "s", formula
        for name, size, where in (
            (
                "kept_scans",
                _KEPT_SAMPLE_BYTES,
                "of kept scans in the cache (measured), until the plan is committed",
            ),
            ("scratch", _SCRATCH_SAMPLE_BYTES, "in TMPDIR (measured), while planning"),
        ):
            yield name, images * size, "B", f"{images:,} x {size} B {where}"

    def _resume(self) -> Iterator[_Row]:
        units = self.units
        formula = f"{units:,} records x {_RECORD_BYTES} B, one request each, 32 at a time"
        yield "records_read", units * _RECORD_BYTES, "B", formula
        formula = f"{units:,} records / {_RECORDS_PER_S:,} per second (measured, local disk)"
        yield "resume_time", units / _RECORDS_PER_S, "s", formula
        formula = (
            f"{format_bytes(_DRIVER_BYTES)} + {units:,} records x {_RECORD_MEMORY_BYTES:,} B "
            "(measured), without the teacher"
        )
        yield "driver_memory", _DRIVER_BYTES + units * _RECORD_MEMORY_BYTES, "B", formula

    def _training(self) -> Iterator[_Row]:
        formula = f"1,000 images/s x (a view + a text) x {self.vector}, in addition to the pixels"
        vector_bytes = self._array("image", self.rows).vector_bytes
        yield "targets_read", 1000 * 2 * vector_bytes, "B/s", formula
        patches = self._patch_array()
        if patches is not None:
            formula = f"1,000 images/s x {self._view_of_cells()}, with --weight patch=W"
            yield "patches_read", 1000 * patches.vector_bytes, "B/s", formula

    def notes(self) -> Iterator[str]:
        """Yield what a reader should know about the numbers."""
        config = self.config
        if config.images_per_s is None or config.texts_per_s is None:
            yield (
                "the rates are assumed, not measured: siglip2-cache build SOURCE CACHE --teacher "
                f"{self.arch.name} --views {self.views} --dry-run --time measures images/s and texts/s of "
                "one worker; pass them as --images-per-s and --texts-per-s"
            )
        yield "wall time excludes planning and loading the teacher, and assumes that decoding keeps up"
        rows = self._rows_for_fewer_units()
        if rows != self.rows:
            shard = format_bytes(self._array("image", rows).shard_bytes(rows))
            yield (
                f"--shard-rows {rows} makes {-(-self.images // rows):,} image units, with "
                f"shards of {shard}: fewer objects, faster resume"
            )

    def _rows_for_fewer_units(self) -> int:
        """Return rows of a unit that make fewer units, while the shards stay small enough."""
        rows, row_bytes = self.rows, self._array("image", self.rows).row_bytes
        while -(-self.images // rows) > _MANY_UNITS and 2 * rows * row_bytes <= _LARGE_SHARD_BYTES:
            rows *= 2
        return rows


def _array_bytes(array: ArrayLayout) -> int:
    """Return the exact bytes of all shards of an array without gaps."""
    num_full, rest = divmod(array.num_rows, array.shard_rows)
    return num_full * array.shard_bytes(array.shard_rows) + (array.shard_bytes(rest) if rest else 0)


def _letters(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{letter} {size:,}" for letter, size in sizes.items())
