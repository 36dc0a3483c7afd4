"""Crossmodal-3600: captions.jsonl, and KEY.jpg for each line in a folder of images.

    {"image/key": "000411001ff7dd4f", "image/locale": "en", "en": {"caption": ["...", "..."], ...}, ...}

Source: Thapliyal et al. 2022, arXiv:2205.12522; captions.zip and images.tgz of
https://google.github.io/crossmodal-3600.
"""

from collections.abc import Iterator
from typing import cast

from ..errors import SourceError
from ..precompute.sources import TableColumns
from ..precompute.sources.fields.captions import CaptionValue, clean_captions
from ..precompute.sources.listing import path_below
from ..precompute.sources.readers.table_rows import BadRow, read_rows
from ..precompute.sources.samples import Caption, Problem, Sample
from ..store.io.location import Location

_KEY = "image/key"


def read_xm3600(data: Location, images: Location) -> Iterator[Sample | Problem]:
    """Yield the images in the order of the file; their paths are relative to ``images``.

    Args:
        data: captions.jsonl.
        images: folder of the images.

    Raises:
        SourceError: the file is not of this layout.
    """
    for row in read_rows(data, TableColumns()):
        place = f"{data} {row.where}"
        if isinstance(row, BadRow):
            yield Problem(place=place, reason=row.reason)
            continue
        key = row.values.get(_KEY)
        if not isinstance(key, str):
            raise SourceError(f"{place} has no {_KEY}; expected captions.jsonl of Crossmodal-3600")
        found: list[Caption] = []
        problems: list[str] = []
        for lang, value in row.values.items():
            if isinstance(value, dict):
                captions = cast(dict[str, object], value).get("caption")
                usable, reasons = clean_captions([CaptionValue(captions, lang)])
                found += usable
                problems += reasons
        try:
            path = path_below(images, f"{key}.jpg")
        except ValueError as error:
            yield Problem(place=place, reason=str(error))
            continue
        yield Sample(key=key, path=path, captions=tuple(found), place=place)
        for reason in problems:
            yield Problem(place=place, reason=reason, key=key)
