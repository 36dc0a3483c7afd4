"""Names of tar archives. Compressed ones are refused, because no single image in them can be read."""

import shlex

from upath import UPath

from ....errors import SourceError
from ....store.io.location import Location

_COMPRESSED = (  # endings, how such a file begins, the command that unpacks it
    ((".tar.gz", ".tgz", ".taz"), b"\x1f\x8b", "gunzip -k {}"),
    ((".tar.bz2", ".tbz2", ".tbz"), b"BZh", "bunzip2 -k {}"),
    ((".tar.xz", ".txz"), b"\xfd7zXZ\0", "unxz -k {}"),
    ((".tar.zst", ".tzst"), b"\x28\xb5\x2f\xfd", "zstd -d {}"),
    ((".tar.lz4",), b"\x04\x22\x4d\x18", "lz4 -d {}"),
)


TAR_ENDING = ".tar"


def is_tar(name: str) -> bool:
    """Return whether a name is that of a tar archive, compressed or not."""
    return name.lower().endswith(TAR_ENDING) or is_compressed_tar(name)


def is_compressed_tar(name: str) -> bool:
    """Return whether a name is that of a compressed archive."""
    return any(name.lower().endswith(endings) for endings, _, _ in _COMPRESSED)


def unpacked_name(name: str) -> str:
    """Return the name of a compressed archive once it is unpacked."""
    ending = next(e for endings, _, _ in _COMPRESSED for e in endings if name.lower().endswith(e))
    return name[: -len(ending)] + TAR_ENDING


def refuse_compressed(path: Location, *, begins: bytes | None = None) -> None:
    """Refuse an archive that is compressed, by its first bytes if given, otherwise by its name.

    Raises:
        SourceError: it is compressed; the message has the command that unpacks it.
    """
    name = path.name.lower()
    for endings, magic, command in _COMPRESSED:
        if begins is None and name.endswith(endings):
            unpack = command.format(shlex.quote(str(path)))
        elif begins is not None and begins.startswith(magic):
            # The programs require the ending, and remove it.
            packed = shlex.quote(f"{path}{endings[0].removeprefix('.tar')}")
            unpack = f"mv {shlex.quote(str(path))} {packed} && {command.format(packed)}"
        else:
            continue
        if isinstance(path, UPath):  # no program unpacks it in the store
            unpack = f"download it, run {command.format('it')}, and upload the result"
        raise SourceError(
            f"{path} is compressed, so single images in it cannot be read; unpack it: {unpack}"
        )
