"""Records that are missing although files that belong to them are there, as in a copy that is not complete.

A commit that was not finished leaves no such file: it has an intent until its record exists.
"""

from collections.abc import Iterable

from ..cache import Cache
from ..format import layout
from ..format.layout import MODALITIES, Modality


class MissingRecords:
    """Tells which missing record a file belongs to: teacher.json, pixels.json, or that of a generation."""

    def __init__(self, cache: Cache, paths: Iterable[str]) -> None:
        """Look for the files of a generation after the latest; ``paths`` are all files of the cache."""
        manifest = cache.manifest
        self._has_pixels = cache.files.exists(layout.PIXELS_RECORD)
        self._teachers = cache.teachers
        self._latest = manifest.latest.number
        self._last_parts: dict[str, int] = {}
        for part in (part for each in manifest.generations for part in each.parts):
            if (parsed := layout.parse_catalog_part(part.path)) is not None:
                table, number = parsed
                self._last_parts[table] = max(self._last_parts.get(table, -1), number)
        self._num_units: dict[Modality, int] = {
            modality: manifest.next_free_row(modality) // manifest.shard_rows
            for modality in MODALITIES
        }
        self.has_later_generation = any(map(self._shows_later_generation, paths)) or any(
            each.generation > self._latest for each in cache.teacher_records.values()
        )
        """Whether the record of the generation after the latest is missing."""

    def record_of(self, path: str) -> str | None:
        """Return the missing record that a file belongs to, or None."""
        folder, *rest = path.split("/")
        if folder == layout.PIXELS and not self._has_pixels:
            is_ours = path.startswith(layout.PIXELS_COMMITS) or layout.parse_unit_file(path)
            return layout.PIXELS_RECORD if is_ours else None
        if folder == layout.TEACHERS and len(rest) > 1 and rest[0] not in self._teachers:
            return layout.teacher_record(rest[0]) if layout.is_teacher_name(rest[0]) else None
        is_later = self.has_later_generation and (
            self._is_later_plan(path) or self._is_later_unit(layout.parse_unit_file(path))
        )
        return layout.generation_record(self._latest + 1) if is_later else None

    def _shows_later_generation(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in {layout.PIXELS_COMMITS, *map(layout.commits_folder, self._teachers)}:
            return self._is_later_plan(path)
        parsed = layout.parse_unit_record(name)
        generation = layout.parse_arrays_record(name)
        return (generation is not None and generation > self._latest) or (
            parsed is not None and self._is_later_unit(parsed[:2])
        )

    def _is_later_plan(self, path: str) -> bool:
        """Return whether a file is a part or a record of a generation after the latest."""
        generation, parsed = layout.parse_generation_record(path), layout.parse_catalog_part(path)
        if generation is not None:
            return generation > self._latest
        return parsed is not None and parsed[1] > self._last_parts.get(parsed[0], -1)

    def _is_later_unit(self, unit: tuple[Modality, int] | None) -> bool:
        return unit is not None and unit[1] >= self._num_units[unit[0]]
