"""Every error that a user of siglip2-cache can meet.

CacheError
├── SettingError          (ValueError)         a setting is wrong, or differs from that of the cache
├── SourceError           (ValueError)         a corpus cannot be planned
│   └── DuplicateKeyError                      two samples have the same key
├── CheckpointError       (ValueError)         a checkpoint is missing, damaged or unsupported
├── NotACacheError        (FileNotFoundError)  no cache at the location named
├── FormatVersionError    (ValueError)         the format version of a cache is not supported
├── DamagedCacheError     (ValueError)         bytes on disk differ from their record
├── RowUnavailableError   (LookupError)        a row has no target: gap, uncommitted, rejected
├── DiskFullError         (OSError)            the disk is full, or too small
├── StorageError          (RuntimeError)       an object store does not respond
├── BuildError            (RuntimeError)       the build failed, or embedded nothing
├── TrainError            (RuntimeError)       the training failed
└── ExportError           (RuntimeError)       an exported file does not compute what the student does

The command line prints the message of each as one line, below it the document that explains it, and exits
with status 1.
"""

from typing import ClassVar


class CacheError(Exception):
    """Root of the errors that this package raises on purpose; the message is for the user."""

    page: ClassVar[str] = ""
    """The document below docs/ that explains such errors; empty: there is none."""


class SettingError(CacheError, ValueError):
    """A setting is wrong, or differs from the one that the cache was built with."""


class SourceError(CacheError, ValueError):
    """A corpus cannot be planned."""

    page = "reference/corpus.md"


class DuplicateKeyError(SourceError):
    """Two samples have the same key; the message names both."""

    page = "reference/corpus.md#keys"


class CheckpointError(CacheError, ValueError):
    """A checkpoint is missing, damaged, unsupported, or not the one that the cache was built with."""

    page = "guides/troubleshooting.md#checkpoints"


class NotACacheError(CacheError, FileNotFoundError):
    """There is no finished plan (cache.json) at the location of a cache."""


class FormatVersionError(CacheError, ValueError):
    """The cache has a format version that this release does not read."""

    page = "reference/format.md#versions"


class DamagedCacheError(CacheError, ValueError):
    """Bytes on disk differ from what the cache recorded."""

    page = "guides/troubleshooting.md#a-damaged-cache"


class RowUnavailableError(CacheError, LookupError):
    """A row has no target: it is a gap, uncommitted, rejected or out of range."""


class DiskFullError(CacheError, OSError):
    """The disk is full, or too small for the plan."""

    page = "guides/troubleshooting.md#no-space-left"


class StorageError(CacheError, RuntimeError):
    """An object store does not respond after a minute of retries."""

    page = "guides/object-stores.md"


class BuildError(CacheError, RuntimeError):
    """The build cannot continue, or finished without a single embedding."""

    page = "guides/troubleshooting.md#a-build-that-ends"


class TrainError(CacheError, RuntimeError):
    """A training cannot continue; the message says what to do. Its last checkpoint is kept."""

    page = "guides/long-training.md#change-or-repair-a-training"


class ExportError(CacheError, RuntimeError):
    """An exported file does not compute what the student does, and was not kept."""

    page = "guides/deploy.md#the-check"
