"""From the rows of a file that holds its images to samples, whether it is Parquet or Arrow."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from ...store.io.location import Location
from .fields.image_column import PackedColumns, image_file
from .fields.row_fields import read_fields
from .listing import printable, size_and_time
from .samples import Problem, Sample


class PackedFile:
    """One file whose rows hold images."""

    def __init__(self, root: Location, name: str, columns: PackedColumns) -> None:
        """Args:
        root: of the source.
        name: path of the file, relative to root.
        columns: of the file.
        """
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
        """Yield the sample of a row, and a problem for each of its values that is no use.

        Args:
            values: of the columns but the image's, by name; or why they cannot be read.
            index: of the row, for messages.
            key: of a row that has none.
            address: fields of a sample that say where in the file the bytes lie; None: there are none.
            path: text beside the bytes; the image where there are no bytes.
            image_sha256: of the bytes, where rows may repeat an image.
            source_sha256: as in Sample.
        """
        place = f"{self.place}, index {index}"
        if isinstance(values, str):
            yield Problem(place=place, reason=values)
            return
        columns, file = self.columns, None
        try:
            fields = read_fields(values, columns.fields, class_names=columns.class_names)
            if address is None:
                file = image_file(self._root, self._folder, path)
        except ValueError as error:
            yield Problem(place=place, reason=str(error))
            return
        num_bytes, mtime_ns = (
            self._size_and_time if file is None else size_and_time(f"{self._root}/{file}")
        )
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
    """Return what rows of one image share: its name, the path beside it or the key, and its bytes.

    Rows that share their bytes alone may be copies that the corpus tells apart.
    """
    if name is None or image_sha256 is None:
        return None
    return hashlib.sha256(f"{image_sha256} {name}".encode("utf-8", "surrogatepass")).hexdigest()
