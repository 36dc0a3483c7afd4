"""The samples of one Parquet file with images. Images are read only if rows may repeat one."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from ...store.io.location import Location
from .fields.image_column import PackedColumns
from .fields.unread_columns import unread_columns
from .img2dataset_records import HASH_COLUMN, STATUS_COLUMNS, Downloads, source_sha256
from .listing import as_location
from .packed_rows import PackedFile
from .readers.parquet_footer import NullCounts, read_null_counts
from .readers.parquet_rows import group_has_repeats, image_sums, null_rows, row_group_rows
from .samples import Problem, Sample


class ParquetFile:
    """One open file whose rows hold images."""

    def __init__(self, opened: Any, file: Location, name: str, columns: PackedColumns) -> None:
        self._opened, self._file, self._columns = opened, file, columns
        self._metadata: Any = opened.metadata
        root = as_location(str(file).removesuffix(name).rstrip("/") or "/")
        self._packed = PackedFile(root, name, columns)
        self._stem = name.removesuffix(PurePosixPath(name).suffix)
        self._downloads = Downloads()
        self._null_counts: NullCounts | None = None

    def scan(self) -> Iterator[Sample | Problem]:
        """Yield the samples and problems of the file in order."""
        columns = self._columns
        names = [name for name in columns.fields.names() if name != columns.image[0]]
        if columns.is_img2dataset:
            present = self._opened.schema_arrow.names
            names += [n for n in (*STATUS_COLUMNS, HASH_COLUMN) if n in present and n not in names]
        has_repeats = not columns.is_img2dataset and self._has_repeats()
        first = 0
        for group in range(self._metadata.num_row_groups):
            count = self._metadata.row_group(group).num_rows
            index = 0
            try:
                without_bytes = self._without_bytes(group)
                paths = self._paths(group) if without_bytes or has_repeats else {}
                sums = image_sums(self._opened, columns.member, group) if has_repeats else {}
                for index, values in enumerate(row_group_rows(self._opened, group, names)):
                    if columns.is_img2dataset and not self._is_downloaded(values):
                        continue
                    address = {"member": columns.member, "row_group": group, "index": index}
                    yield from self._packed.row(
                        values,
                        index=str(first + index),
                        key=f"{self._stem}/{first + index}",
                        address=None if index in without_bytes else address,
                        path=paths.get(index),
                        image_sha256=sums.get(index),
                        source_sha256=self._source_sha256(values),
                    )
            except ValueError as error:
                where = f"rows {first + index:,} to {first + count - 1:,} (row group {group})"
                reason = f"{where} cannot be read ({error}); copy the file again"
                yield Problem(place=self._packed.place, reason=reason)
            first += count
        yield from self._downloads.problems(self._packed.place)
        if not columns.is_img2dataset:
            yield from unread_columns(
                dict.fromkeys(columns.unread, first), self._packed.place, columns.fields
            )

    def _is_downloaded(self, values: dict[str, object] | str) -> bool:
        return isinstance(values, str) or self._downloads.add(values)

    def _source_sha256(self, values: dict[str, object] | str) -> bytes | None:
        if isinstance(values, str) or not self._columns.is_img2dataset:
            return None
        return source_sha256(values)

    def _has_repeats(self) -> bool:
        """Return whether two rows of a row group have the same key, or the same path beside their bytes."""
        columns = self._columns
        names = [".".join(columns.path)] if columns.path else []
        names += [columns.fields.key] if columns.fields.key else []
        groups = range(self._metadata.num_row_groups)
        return any(
            group_has_repeats(self._opened, group, name) for group in groups for name in names
        )

    def _without_bytes(self, group: int) -> set[int]:
        """Return the rows of a row group that have no bytes.

        Raises:
            ValueError: the row group is damaged; the message is a reason.
        """
        if self._columns.is_img2dataset:  # whose status column says it
            return set()
        if self._null_counts is None:
            num_groups, member = self._metadata.num_row_groups, self._columns.member
            self._null_counts = read_null_counts(str(self._file), member, num_groups)
        return null_rows(self._opened, group, self._columns.image, self._null_counts[group])

    def _paths(self, group: int) -> dict[int, object]:
        """Return the path beside the bytes of each row."""
        if self._columns.path is None:
            return {}
        rows = row_group_rows(self._opened, group, [".".join(self._columns.path)])
        return {
            index: values if isinstance(values, str) else _inner(values)
            for index, values in enumerate(rows)
        }


def _inner(values: dict[str, object]) -> object:
    """Return the value inside nested structs with one field."""
    found: object = values
    while isinstance(found, dict):
        found = next(iter(found.values()), None)  # pyright: ignore[reportUnknownArgumentType]
    return found  # pyright: ignore[reportUnknownVariableType]
