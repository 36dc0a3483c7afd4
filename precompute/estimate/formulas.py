"""The numbers of a plan, group by group, each with its formula; capacity.py says what is asked."""

import math
from collections.abc import Iterator, Mapping

from ...formatting import format_bytes
from ...siglip import TEXT_FORMULA, VIEW_FORMULA, Architecture, find_architecture
from ...store.format.catalog import PART_ROWS
from ...store.io.range_file import PIECE_BYTES
from ..planning.config import default_shard_rows
from . import costs
from .costs import array_bytes
from .estimate import ASSUMED_IMAGE_BYTES, Capacity, CapacityConfig, Quantity, Unit

_LONE_READ_BYTES = 64 << 10
"""Of a request for a header, where the image before it is too large to be read over."""

_READ_OVER_BYTES = PIECE_BYTES // 2
"""Images up to this size are read over."""

_TAR_SAMPLE_BYTES = 1_792
"""Of a tar beside the bytes of an image: its header, 256 of padding, and a member with a caption."""

_DECODE_S = 0.0035
"""Of one core, for a photograph of 640 x 426 to 224 px: benchmarks/results/decode_xeon-2core_202611.md."""

_SCAN_SAMPLES_PER_S, _FREEZE_SAMPLES_PER_S, _VIEWS_PER_S = 15_000, 110_000, 500_000
_KEPT_SAMPLE_BYTES, _SCRATCH_SAMPLE_BYTES = 76, 232
_RECORDS_PER_S, _DRIVER_BYTES, _RECORD_MEMORY_BYTES = 20_000, 120_000_000, 2_000
"""Of one core, and of its memory and disk: benchmarks/results/scale_xeon-2core_202611.md."""

_MANY_UNITS = 100_000
_LARGE_SHARD_BYTES = 200_000_000

_Number = tuple[str, float, Unit, str]
"""Name, value, unit and formula of a Quantity."""


def reckon(config: CapacityConfig) -> Capacity:
    """Return what a build would take. Reads at most a checkpoint's settings.

    Raises:
        CheckpointError: nothing is known of the teacher.
        SettingError: the teacher is of fixed resolution, and a number of patches was asked for.
    """
    architecture = find_architecture(config.teacher, max_num_patches=config.max_num_patches)
    reckoner = _Reckoner(config, architecture)
    return Capacity(
        config=config,
        architecture=architecture,
        quantities=tuple(reckoner.quantities()),
        notes=tuple(reckoner.notes()),
    )


class _Reckoner:
    """The numbers of one capacity."""

    def __init__(self, config: CapacityConfig, architecture: Architecture) -> None:
        self._config, self._arch, self._work = config, architecture, config.workload
        self._rows = config.shard_rows or default_shard_rows(config.num_views)
        self._images = self._work.array("image", architecture.embed_dim, self._rows)
        self._texts = self._work.array("text", architecture.embed_dim, self._rows)
        self._num_units = (
            -(-self._work.num_images // self._rows),
            -(-self._work.num_texts // self._rows),
        )
        self._peak = config.peak_tflops or costs.PEAK_TFLOPS[config.gpu]
        flops_per_s = self._peak * 1e12 * config.mfu
        self._sample_flops = config.num_views * architecture.flops_of_view
        self._images_per_s = config.images_per_s or flops_per_s / self._sample_flops
        self._texts_per_s = config.texts_per_s or flops_per_s / architecture.flops_of_text

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
        for group, numbers in groups.items():
            for number in numbers():
                yield Quantity(group, *number)

    def _units(self) -> Iterator[_Number]:
        work, rows, views = self._work, self._rows, self._work.num_views
        image_units, text_units = self._num_units
        why = "" if self._config.shard_rows else f" (16,384 / {views} views, to a power of two)"
        yield "image_units", image_units, "", f"{work.num_images:,} images / {rows:,} rows{why}"
        yield "text_units", text_units, "", f"{work.num_texts:,} texts / {rows:,} rows"
        shard, dim = self._images.shard_bytes(rows), self._arch.embed_dim
        how = f"{rows:,} rows x {views} views x {dim:,} x 2 B, and an index"
        yield "image_shard", shard, "B", how
        how = "3 shards: one fills, one is written, and its bytes; beside teacher and pixels"
        yield "worker_memory", 3 * shard, "B", how

    def _objects(self) -> Iterator[_Number]:
        units, parts = sum(self._num_units), self._work.catalog_parts
        named = ", ".join(f"{table} {count:,}" for table, count in parts.items() if count)
        counts = {
            "shards": (units, "one a unit"),
            "image_tables": (self._num_units[0], "one an image unit"),
            "records": (units, "one a unit"),
            "catalog_parts": (sum(parts.values()), f"of {PART_ROWS:,} lines: {named}"),
            "settings": (4, "cache.json, teacher.json, a zarr.json for each modality"),
        }
        for name, (count, formula) in counts.items():
            yield name, count, "", formula
        total = sum(count for count, _ in counts.values())
        yield "objects", total, "", "the sum; each is written once"

    def _bytes(self) -> Iterator[_Number]:
        work, dim, units = self._work, self._arch.embed_dim, sum(self._num_units)
        images, texts, files = work.num_images, work.num_texts, work.num_files
        lines, sizes = work.catalog_lines, work.catalog_bytes
        views, more = lines["views"], lines["captions"] - texts
        index = f"and 16 B of index for {self._images.chunk_rows} rows"
        found = {
            "image_targets": (
                array_bytes(self._images),
                f"{images:,} images x {work.num_views} views x {dim:,} x 2 B, {index}",
            ),
            "text_targets": (array_bytes(self._texts), f"{texts:,} texts x {dim:,} x 2 B, {index}"),
            "pictures": (
                costs.IMAGE_BYTES * images,
                f"{images:,} images x {costs.IMAGE_BYTES} B: sha256, size",
            ),
            "samples": (sizes["samples"], f"{images:,} images x {costs.SAMPLE_BYTES} B (expected)"),
            "files": (sizes["files"], f"{files:,} tars x {costs.FILE_BYTES} B (expected)"),
            "views": (sizes["views"], f"{views:,} views x {costs.VIEW_BYTES} B (expected)"),
            "texts": (
                sizes["texts"],
                f"{texts:,} texts x {costs.TEXT_BYTES} B, a caption each (expected)",
            ),
            "captions": (
                sizes["captions"],
                f"{more:,} captions more x {costs.CAPTION_BYTES} B (expected)",
            ),
            "unit_records": (
                costs.RECORD_BYTES * units,
                f"{units:,} units x {costs.RECORD_BYTES} B",
            ),
        }
        for name, (num_bytes, formula) in found.items():
            if num_bytes:
                yield name, num_bytes, "B", formula
        yield "bytes", sum(size for size, _ in found.values()), "B", "the sum"

    def _arithmetic(self) -> Iterator[_Number]:
        work, arch = self._work, self._arch
        most = ", N at most" if arch.is_naflex else ""
        formula = f"{VIEW_FORMULA}; {_letters(arch.view_sizes)}{most}"
        yield "view", arch.flops_of_view, "FLOP", formula
        yield "text", arch.flops_of_text, "FLOP", f"{TEXT_FORMULA}; {_letters(arch.text_sizes)}"
        formula = f"{work.num_images:,} images x {work.num_views} views x view"
        yield "all_images", work.flops_of_images(arch), "FLOP", formula
        yield "all_texts", work.flops_of_texts(arch), "FLOP", f"{work.num_texts:,} texts x text"

    def _worker(self) -> Iterator[_Number]:
        config = self._config
        vendor = "as given" if config.peak_tflops else f"{config.gpu}, by its vendor"
        formula = f"{self._peak:,g} TFLOP/s ({vendor}) x {config.mfu:g} (assumed)"
        yield "gpu", self._peak * 1e12 * config.mfu, "FLOP/s", formula
        for name, rate, measured, flops, formula in (
            (
                "images_per_s",
                self._images_per_s,
                config.images_per_s,
                self._sample_flops,
                f"gpu / ({self._work.num_views} views x view)",
            ),
            (
                "texts_per_s",
                self._texts_per_s,
                config.texts_per_s,
                self._arch.flops_of_text,
                "gpu / text",
            ),
        ):
            if measured is not None:
                share = measured * flops / (self._peak * 1e12)
                formula = f"as given, measured: {share:.2g} of {self._peak:,g} TFLOP/s"
            yield name, rate, "/s", formula
        formula = (
            f"images per s x {_DECODE_S * 1000:g} ms: a photograph of 640 x 426 to 224 px, on a Xeon "
            "(measured); larger ones and more views take more"
        )
        yield "decoding_cores", self._images_per_s * _DECODE_S, "", formula

    def _time(self) -> Iterator[_Number]:
        work, gpus = self._work, self._config.num_gpus
        image_h = work.num_images / self._images_per_s / 3600
        text_h = work.num_texts / self._texts_per_s / 3600
        yield "gpu_hours_images", image_h, "h", f"{work.num_images:,} / images per s / 3600"
        yield "gpu_hours_texts", text_h, "h", f"{work.num_texts:,} / texts per s / 3600"
        hours = image_h + text_h
        yield "gpu_hours", hours, "h", "the sum"
        yield "wall_time", hours * 3600 / gpus, "s", f"gpu hours / {gpus:,} workers"
        formula = f"{self._rows:,} rows / images per s: what a killed worker loses at most"
        yield "image_unit_time", self._rows / self._images_per_s, "s", formula

    def _network(self) -> Iterator[_Number]:
        gpus, size = self._config.num_gpus, self._image_bytes
        row_bytes = self._images.row_bytes + costs.IMAGE_BYTES
        read, written = self._images_per_s * size, self._images_per_s * row_bytes
        yield "read_by_a_worker", read, "B/s", f"images per s x {self._image_size}"
        formula = f"images per s x {row_bytes:,} B of targets and pictures"
        yield "written_by_a_worker", written, "B/s", formula
        yield "read_by_all", read * gpus, "B/s", f"{gpus:,} workers x read by a worker"
        formula = f"{gpus:,} workers x images per s: a ranged read each"
        yield "requests_by_all", self._images_per_s * gpus, "/s", formula

    def _planning(self) -> Iterator[_Number]:
        images, tars, each = (
            self._work.num_images,
            self._work.num_files,
            self._config.images_per_tar,
        )
        yield "tars", tars, "", f"{images:,} images / {each:,} a tar"
        if self._image_bytes <= _READ_OVER_BYTES:
            sample = self._image_bytes + _TAR_SAMPLE_BYTES
            num_bytes = images * sample
            requests = tars * math.ceil(min(each, images) * sample / PIECE_BYTES)
            what = (
                f"{images:,} x ({self._image_size} + {_TAR_SAMPLE_BYTES:,} B of tar), read through"
            )
            how = f"{tars:,} tars in pieces of {PIECE_BYTES:,} B"
        else:
            num_bytes, requests = images * _LONE_READ_BYTES, images
            what = f"{images:,} headers x {_LONE_READ_BYTES:,} B: images are passed over"
            how = "one an image"
        yield "remote_bytes", num_bytes, "B", f"{what}; of local tars headers alone"
        yield "remote_requests", requests, "", how
        formula = f"{images:,} / {_SCAN_SAMPLES_PER_S:,} a second of a core (measured, local tars)"
        yield "scan_time", images / _SCAN_SAMPLES_PER_S, "s", formula
        views = self._work.catalog_lines["views"]
        drawn = f" + {views:,} views / {_VIEWS_PER_S:,}" if views else ""
        formula = f"{images:,} / {_FREEZE_SAMPLES_PER_S:,} a second{drawn} (measured), one process"
        yield "freeze_time", images / _FREEZE_SAMPLES_PER_S + views / _VIEWS_PER_S, "s", formula
        sizes = _KEPT_SAMPLE_BYTES, _SCRATCH_SAMPLE_BYTES
        formula = (
            f"{images:,} x {sizes[0]} B of kept scans in the cache (measured), until it stands"
        )
        yield "kept_scans", images * sizes[0], "B", formula
        formula = f"{images:,} x {sizes[1]} B in TMPDIR (measured), while it freezes"
        yield "scratch", images * sizes[1], "B", formula

    def _resume(self) -> Iterator[_Number]:
        units = sum(self._num_units)
        formula = f"{units:,} records x {costs.RECORD_BYTES} B, a request each, 32 at a time"
        yield "records_read", units * costs.RECORD_BYTES, "B", formula
        formula = f"{units:,} records / {_RECORDS_PER_S:,} a second (measured, a local disk)"
        yield "resume_time", units / _RECORDS_PER_S, "s", formula
        memory = _DRIVER_BYTES + units * _RECORD_MEMORY_BYTES
        formula = (
            f"{format_bytes(_DRIVER_BYTES)} + {units:,} records x {_RECORD_MEMORY_BYTES:,} B "
            "(measured), without the teacher"
        )
        yield "driver_memory", memory, "B", formula

    def _training(self) -> Iterator[_Number]:
        dim = self._arch.embed_dim
        formula = f"1,000 images/s x (a view + a text) x {dim:,} x 2 B, beside the pixels"
        yield "targets_read", 1000 * 2 * 2 * dim, "B/s", formula

    @property
    def _image_bytes(self) -> float:
        return self._config.image_bytes or ASSUMED_IMAGE_BYTES

    @property
    def _image_size(self) -> str:
        assumed = "" if self._config.image_bytes else " an image (assumed)"
        return f"{format_bytes(self._image_bytes)}{assumed}"

    def notes(self) -> Iterator[str]:
        """Yield what a reader should know of the numbers."""
        config = self._config
        if config.images_per_s is None or config.texts_per_s is None:
            yield (
                "the rates are no measurements: siglip2-cache build SOURCE CACHE --teacher "
                f"{self._arch.name} --views {config.num_views} --dry-run --time prints images/s and "
                "texts/s of a worker; give them with --images-per-s and --texts-per-s"
            )
        yield "wall time is without planning and loading the teacher, and decoding must keep up"
        rows = self._fewer_units()
        if rows != self._rows:
            array = self._work.array("image", self._arch.embed_dim, rows)
            yield (
                f"--shard-rows {rows} makes {-(-self._work.num_images // rows):,} image units, with "
                f"shards of {format_bytes(array.shard_bytes(rows))}: fewer objects, a quicker resume"
            )

    def _fewer_units(self) -> int:
        """Return rows for units that are not so many, while their shards are not too large."""
        rows, row_bytes = self._rows, self._images.row_bytes
        while (
            -(-self._work.num_images // rows) > _MANY_UNITS
            and 2 * rows * row_bytes <= _LARGE_SHARD_BYTES
        ):
            rows *= 2
        return rows


def _letters(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{letter} {size:,}" for letter, size in sizes.items())
