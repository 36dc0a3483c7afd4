"""Making samples of the rows of a Parquet or Arrow file that holds its images."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from ...store.io.location import Location
from .fields.image_column import PackedColumns, image_file
from .fields.row_fields import read_fields
from .listing import SizeAndTime, printable, size_and_time
from .named_files import find_named
from .samples import Problem, Sample


class PackedFile:
    """One file whose rows hold images."""

    def __init__(self, root: Location, name: str, columns: PackedColumns) -> None:
        """Describe a file by the root of its source, its path relative to root, and its columns."""
        self.name, self.columns = name, columns
        self.place = printable(f"{root}/{name}")
        self._root, self._folder = root, PurePosixPath(name).parent
        self._size_and_time = size_and_time(f"{root}/{name}")

    def row(
        self,
        values: dict[str, object] | str,
        *,
        index: str,
        key: str,
        address: Mapping[str, Any] | None,
        path: object = None,
        image_sha256: str | None = None,
        source_sha256: bytes | None = None,
    ) -> Iterator[Sample | Problem]:
        """Yield the sample of a row, and a problem for each value that cannot be used.

        Args:
            values: of all columns but the image's, by name; or why they cannot be read.
            index: number of the row, for messages.
            key: key of a row without one.
            address: fields of Sample with the position of the bytes in the file; None: there are no bytes.
            path: text beside the bytes; the file of the image if there are no bytes.
            image_sha256: hash of the bytes, if rows may repeat an image.
            source_sha256: as in Sample.
        """
        place = f"{self.place}, index {index}"
        if isinstance(values, str):
            yield Problem(place=place, reason=values)
            return
        columns, file = self.columns, None
        facts: SizeAndTime = self._size_and_time
        try:
            fields = read_fields(values, columns.fields, class_names=columns.class_names)
            if address is None:
                file, facts = find_named(self._root, image_file(self._root, self._folder, path))
        except ValueError as error:
            yield Problem(place=place, reason=str(error))
            return
        num_bytes, mtime_ns = facts
        own_name = path if isinstance(path, str) else fields.key
        yield Sample(
            key=fields.key or key,
            path=file or self.name,
            captions=fields.captions,
            label=fields.label,
            image_id=image_id(own_name, image_sha256) if file is None else None,
            source_sha256=source_sha256,
            num_bytes=num_bytes,
            mtime_ns=mtime_ns,
            place=place,
            **(address or {}),
        )
        for reason in fields.reasons:
            yield Problem(place=place, reason=reason, key=fields.key or key)


def image_id(name: str | None, image_sha256: str | None) -> str | None:
    """Return a text that rows of one image share: a hash of its name (path or key) and its bytes.

    Rows with the same bytes under different names are different samples.
    """
    if name is None or image_sha256 is None:
        return None
    return hashlib.sha256(f"{image_sha256} {name}".encode("utf-8", "surrogatepass")).hexdigest()
