"""The splits of COCO and Flickr30k by Karpathy: dataset_coco.json and dataset_flickr30k.json.

    {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "split": "test",
                 "sentences": [{"raw": "A man with a red helmet on a small moped."}, ...]}, ...]}

Flickr30k has no filepath.
Source: A. Karpathy and L. Fei-Fei 2015, arXiv:1412.2306; caption_datasets.zip of the project page.
"""

from collections import Counter
from collections.abc import Iterator

from ..errors import SettingError, SourceError
from ..precompute.sources import TableColumns
from ..precompute.sources.fields.captions import CaptionValue, clean_captions
from ..precompute.sources.listing import path_below
from ..precompute.sources.readers.json_records import json_rows
from ..precompute.sources.samples import Problem, Sample
from ..store.io.location import Location


def read_karpathy(data: Location, images: Location, split: str) -> Iterator[Sample | Problem]:
    """Yield the images of a split in the order of the file; their paths are relative to ``images``.

    Args:
        data: the JSON file.
        images: folder that has the file names, or the folders of ``filepath``.
        split: test, val, train or restval.

    Raises:
        SourceError: the file is not of this layout.
        SettingError: it has no image of that split.
    """
    splits: Counter[str] = Counter()
    for place, row in json_rows(data, TableColumns()):
        where = f"{data} {place}"
        if isinstance(row, str):
            yield Problem(place=where, reason=row)
            continue
        name, of_split, folder = row.get("filename"), row.get("split"), row.get("filepath", "")
        if not (isinstance(name, str) and isinstance(of_split, str) and isinstance(folder, str)):
            raise SourceError(
                f"{where} has no filename and split; expected dataset_coco.json or "
                "dataset_flickr30k.json of Karpathy"
            )
        splits[of_split] += 1
        if of_split == split:
            yield from _sample(where, images, f"{folder}/{name}" if folder else name, row)
    if not splits[split]:
        found = ", ".join(f"{name} ({count:,})" for name, count in sorted(splits.items()))
        raise SettingError(f"{data} has no image of split {split!r}; it has {found or 'none'}")


def _sample(
    place: str, images: Location, path: str, row: dict[str, object]
) -> Iterator[Sample | Problem]:
    captions, reasons = clean_captions([CaptionValue(row.get("sentences"))])
    try:
        path = path_below(images, path)
    except ValueError as error:
        yield Problem(place=place, reason=str(error))
        return
    yield Sample(key=path, path=path, captions=captions, place=place)
    for reason in reasons:
        yield Problem(place=place, reason=reason, key=path)
