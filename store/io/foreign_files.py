"""Files that are nobody's: what desktops, network file systems and stores leave in any folder."""

import re

_NAMES = frozenset(
    {
        *(".ds_store", ".localized", ".spotlight-v100", ".trashes", ".fseventsd"),  # macOS
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"),  # Windows
        *("system volume information",),
        *(".directory", "lost+found", "@eadir", "#recycle", ".snapshot"),  # KDE, ext4, NAS boxes
    }
)

_FORMS = re.compile(
    r"\._.*"  # macOS, on disks that hold no resource forks
    r"|\.nfs[0-9a-f]+"  # NFS: a file that was removed while a process had it open
    r"|\.fuse_hidden[0-9a-f]+"  # FUSE: the same
    r"|\.trash-[0-9]+"
    r"|.*_\$folder\$"  # a folder's marker in an object store, as Hadoop makes them
    r"|"  # ... and as consoles do: an object whose name ends in a slash
)


def is_stray(path: str) -> bool:
    """Say whether a file, by any part of its path, is nobody's."""
    return any(
        part in _NAMES or _FORMS.fullmatch(part) is not None for part in path.lower().split("/")
    )
