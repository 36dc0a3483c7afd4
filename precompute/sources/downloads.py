"""Parquet files that img2dataset wrote: which links of a shard gave no image, which shards are unfinished.

A shard is ``NNNNN.parquet``, with a row for each link; ``NNNNN_stats.json`` beside it comes last.
Source: img2dataset 1.47, writer.py and downloader.py.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from .base import Problem
from .captions import is_unicode

STATUS_COLUMNS = ("status", "error_message")
HASH_COLUMN = "sha256"
"""Of the download, in 64 hexadecimal digits; null where img2dataset was not to compute it."""

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_WHAT = {"failed_to_download": "not downloaded", "failed_to_resize": "not decoded or resized"}
_MAX_REASONS = 20  # different ones that one shard's problems name
_MAX_REASON = 200  # characters of one


class Downloads:
    """Counts the rows of one shard that hold no image, by reason."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._failed: Counter[str] = Counter()

    def add(self, values: Mapping[str, object]) -> bool:
        """Count a row; return whether it holds an image."""
        self._num_rows += 1
        status = values.get("status")
        if status == "success":
            return True
        what = _WHAT.get(str(status), f"of status {str(status)[:40]!r}")
        message = values.get("error_message")
        why = " ".join(message.split())[:_MAX_REASON] if isinstance(message, str) else ""
        self._failed[f"{what}: {why}" if why and is_unicode(why) else what] += 1
        return False

    def problems(self, place: str) -> Iterator[Problem]:
        """Yield a problem for each reason, the most frequent first."""
        common = self._failed.most_common()
        for reason, count in common[:_MAX_REASONS]:
            yield Problem(place=place, reason=f"{count:,} of {self._num_rows:,} rows were {reason}")
        rest = sum(count for _, count in common[_MAX_REASONS:])
        if rest:
            reason = f"{rest:,} of {self._num_rows:,} rows hold no image for other reasons"
            yield Problem(place=place, reason=reason)


def source_sha256(values: Mapping[str, object]) -> bytes | None:
    """Return the hash of what was downloaded, where the row says it."""
    written = values.get(HASH_COLUMN)
    is_hash = isinstance(written, str) and _SHA256.fullmatch(written)
    return bytes.fromhex(written) if is_hash and isinstance(written, str) else None


def is_unfinished(shard: Path) -> bool:
    """Say whether img2dataset has not finished a shard: it has no stats, and others beside it have."""
    if not shard.stem.isdecimal() or _stats(shard).exists():
        return False
    return any(re.fullmatch(r"\d+_stats\.json", path.name) for path in _listed(shard.parent))


def unfinished(shard: Path) -> Problem:
    """Return the problem that an unfinished shard is."""
    return Problem(
        place=str(shard),
        reason=f"img2dataset has not finished it (there is no {_stats(shard).name}), skipped; run "
        f"img2dataset again, or, if it is whole: touch {_stats(shard).name}",
    )


def _stats(shard: Path) -> Path:
    return shard.with_name(f"{shard.stem}_stats.json")


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.glob("*_stats.json")
    except OSError:
        return
