"""Names of files that desktops, network file systems and object stores leave in any folder."""

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
    r"\._.*"  # macOS, on disks without resource forks
    r"|\.nfs[0-9a-f]+"  # NFS: a file removed while a process had it open
    r"|\.fuse_hidden[0-9a-f]+"  # FUSE: the same
    r"|\.trash-[0-9]+"
    r"|.*_\$folder\$"  # marks a folder in an object store (Hadoop)
    r"|"  # marks a folder in an object store (consoles): a name that ends in a slash
)


def is_stray(path: str) -> bool:
    """Return whether any part of a path has the name of such a file."""
    return any(
        part in _NAMES or _FORMS.fullmatch(part) is not None for part in path.lower().split("/")
    )
