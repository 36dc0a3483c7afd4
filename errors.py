"""Every error that a user of siglip2-cache can meet.

CacheError
├── SettingError          (ValueError)         a setting that is wrong, or differs from the cache's
├── SourceError           (ValueError)         a corpus that cannot be planned
│   └── DuplicateKeyError                      one key for two samples
├── CheckpointError       (ValueError)         a checkpoint that is missing, damaged or unsupported
├── NotACacheError        (FileNotFoundError)  no cache where one was named
├── FormatVersionError    (ValueError)         a cache written by another format version
├── DamagedCacheError     (ValueError)         bytes on disk differ from what was recorded
├── RowUnavailableError   (LookupError)        a row without a target: gap, uncommitted, rejected
├── DiskFullError         (OSError)            the disk is, or will be, too small
├── StorageError          (RuntimeError)       an object store that does not answer
├── BuildError            (RuntimeError)       the build cannot go on, or embedded nothing
└── TrainError            (RuntimeError)       the training cannot go on

The command line prints the message of each as one line and exits with status 1.
"""

import re

_ODD = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters: ends of lines, the escapes that move a cursor
    "\u2028\u2029\u202a-\u202e\u2066-\u2069"  # ends of lines again; turn the text behind them around
    "\ud800-\udfff]"  # bytes of a name that are not UTF-8
)


_MOST_CHARACTERS, _HEAD, _LEFT_OUT = 300, 150, " ... "


def one_line(text: str) -> str:
    """Return a text that may hold anything as one line that leaves the terminal as it was.

    Control characters, ends of lines, marks that turn the direction of what follows, and lone
    surrogates become escapes such as ``\\n``, ``\\x1b`` and ``\\u202e``.
    """
    return _ODD.sub(lambda found: ascii(found[0])[1:-1], text)


def short_line(text: str) -> str:
    """Return a text as one_line does, at most 300 characters: of a longer one the middle is left out.

    A message begins with what is wrong and ends with the remedy.
    """
    line = one_line(text)
    if len(line) <= _MOST_CHARACTERS:
        return line
    return f"{line[:_HEAD]}{_LEFT_OUT}{line[_HEAD + len(_LEFT_OUT) - _MOST_CHARACTERS :]}"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or the name of its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def plain_json(text: str) -> str:
    """Return a JSON text, indented or not, with what one_line escapes written as ``\\uXXXX``."""
    return _ODD.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


class CacheError(Exception):
    """Root of the errors this package raises on purpose; its message is meant for the user."""


class SettingError(CacheError, ValueError):
    """A setting is wrong, or differs from the one the cache was made with."""


class SourceError(CacheError, ValueError):
    """A corpus cannot be planned."""


class DuplicateKeyError(SourceError):
    """Two samples have one key; the message names both places."""


class CheckpointError(CacheError, ValueError):
    """A checkpoint is missing, damaged, unsupported, or not the one the cache was made with."""


class NotACacheError(CacheError, FileNotFoundError):
    """There is no finished plan (cache.json) where a cache was named."""


class FormatVersionError(CacheError, ValueError):
    """The cache was written by a format version this program does not read."""


class DamagedCacheError(CacheError, ValueError):
    """Bytes on disk differ from what the cache recorded about them."""


class RowUnavailableError(CacheError, LookupError):
    """A row has no target: it is a gap, uncommitted, rejected or out of range."""


class DiskFullError(CacheError, OSError):
    """The disk is full, or too small for what was planned."""


class StorageError(CacheError, RuntimeError):
    """An object store does not answer, after a minute of trying."""


class BuildError(CacheError, RuntimeError):
    """The build cannot go on, or finished without a single embedding."""


class TrainError(CacheError, RuntimeError):
    """A training cannot go on; the message says what to do. Its last checkpoint stays."""
