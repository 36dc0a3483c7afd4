"""Rules that change the keys of a source: the file's name before each, no ``./`` at their beginning.

The rules of a source are among its recorded settings, for later plans of it must give the same keys.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from .samples import Problem, Sample

PLAIN = "plain_keys"
PREFIXED = "prefix_keys"


def apply_rules(
    rules: tuple[str, ...], scan: Callable[[], Iterator[Sample | Problem]]
) -> Iterator[Sample | Problem]:
    """Yield what a scan yields, with the keys that some rules (names of RULES) give."""
    last: tuple[str, str] | None = None
    for item in scan():
        if isinstance(item, Sample):
            last = item.key, _new_key(item, rules)
            yield replace(item, key=last[1]) if last[0] != last[1] else item
        elif last is not None and item.key == last[0]:
            yield replace(item, key=last[1])
        else:
            yield item


def _new_key(sample: Sample, rules: tuple[str, ...]) -> str:
    for name in rules:
        sample = replace(sample, key=RULES[name](sample))
    return sample.key


def plain_key(sample: Sample) -> str:
    """Return the key without the ``./`` that ``tar`` writes before names when it packs a folder."""
    has_prefix = sample.member is not None and sample.member.startswith("./")
    return sample.key.removeprefix("./") if has_prefix else sample.key


def prefixed_key(sample: Sample) -> str:
    """Return a key that no image of another file has.

    In an archive or a Parquet file the file's path without ending comes before the key: ``shards/000/k7``.
    The key of an image that is a file begins with its whole path, ``dogs/a.jpg``; the key that a table
    gives it follows: ``dogs/a.jpg/k7``.
    """
    stem = str(PurePosixPath(sample.path).with_suffix(""))
    if sample.offset is None and sample.row_group is None:
        return sample.path if sample.key == stem else f"{sample.path}/{sample.key}"
    has_prefix = sample.key.startswith(f"{stem}/")  # the key of a Parquet row without one
    return sample.key if has_prefix else f"{stem}/{sample.key}"


RULES = {PLAIN: plain_key, PREFIXED: prefixed_key}
