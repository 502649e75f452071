"""Where a store may lie, and what a file is by its first bytes: a wrong file is not taken for a damaged store.

A file that SQLite has open in this process is never opened here: closing it again would drop SQLite's own locks, since
POSIX takes all of a process's locks on a file away when any descriptor of it is closed.
"""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path
from typing import Protocol

from rolltree.errors import InvalidInputError, StoreCorruptedError, StoreError
from rolltree.traces.format import SQLITE, first_bytes, kind_of

NETWORK = (
    "processes of one machine may share it there, those of several may not: SQLite's log needs one memory. Name a file "
    "on a local disk, one on each machine"
)
_NETWORKS = ("nfs", "cifs", "smb", "lustre", "gluster", "ceph", "beegfs", "gpfs", "9p", "afs", "fuse.sshfs", "panfs")
_MOUNTS = Path("/proc/self/mountinfo")

Identity = tuple[int, int]
"""Device and inode: the file itself, whatever it is called; (0, 0) for none."""


class User(Protocol):
    """What has files open."""

    def has_open(self, file: Identity) -> bool:
        """Whether this one is."""


users: weakref.WeakSet[User] = weakref.WeakSet()


def identity(path: Path) -> Identity:
    """Which file it is; (0, 0) where there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def in_use(path: Path) -> bool:
    """Whether this process has the file open as a store."""
    file = identity(path)
    return any(user.has_open(file) for user in list(users))


def as_path(path: object, name: str = "store.path") -> Path:
    """Return the path of a file.

    Raises:
        InvalidInputError: no path, an empty one, or one of SQLite's special names.

    """
    if not isinstance(path, str | os.PathLike) or not isinstance(text := os.fspath(path), str):
        raise InvalidInputError(name, path, "a path: text, or a pathlib.Path")
    if not text or "\0" in text:
        raise InvalidInputError(name, text, "the name of a file")
    if text == ":memory:" or text.startswith("file:"):
        fix = "A store lives beyond its process: name a file. RolloutCache() alone remembers in memory."
        raise InvalidInputError(name, text, "a file on a local disk", fix)
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidInputError(name, text, "a name that the file system can hold", str(error)) from error
    return Path(text)


def existing(path: object) -> Path:
    """`path`, which must be there: looking at a store must not make one.

    Raises:
        InvalidInputError: there is no such file.
        StoreError: the system does not let us look.

    """
    found = as_path(path)
    if _mode(found) is None:
        raise InvalidInputError("store.path", str(path), "a file that exists", "Check the name.")
    look_at(found)
    return found


def look_at(path: Path) -> None:
    """Refuse what cannot be a store, before SQLite sees it (which writes over short files that are none).

    A file that is missing or empty passes.

    Raises:
        InvalidInputError: no folder for it, a folder itself, a device, or a file of another kind.
        StoreCorruptedError: a file of no kind that is known.
        StoreError: the system does not let us look.

    """
    mode = _mode(path)
    if mode is None and not _is_folder(path.parent):
        raise InvalidInputError("store.path", str(path), "a file in a folder that exists", "Make the folder first.")
    if mode is not None and not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise InvalidInputError("store.path", str(path), "a file", f"This is {what}.")
    if mode is not None and not in_use(path):
        _check_kind(path, beginning(path))


def network_of(path: Path) -> str:
    """The kind of network file system that a path lies on; empty for local ones, and where the system does not say."""
    try:
        lines, place = _MOUNTS.read_text().splitlines(), os.path.realpath(path)
    except OSError:
        return ""
    found = ("", "")  # mount point and kind; of several at one point the last counts
    for fields in (line.split() for line in lines):
        point = fields[4].replace("\\040", " ")
        if os.path.commonpath((point, place)) == point and len(point) >= len(found[0]):
            found = point, fields[fields.index("-") + 1]
    return found[1] if found[1].startswith(_NETWORKS) else ""


def is_empty(path: Path) -> bool:
    """Whether there is a file, and nothing in it."""
    try:
        return path.is_file() and not path.stat().st_size
    except OSError:
        return False


def _check_kind(path: Path, head: bytes) -> None:
    if not head or head == SQLITE:
        return
    if kind := kind_of(head):
        fix = f"This is a {kind}. `rolltree store import STORE FILE` adds JSON lines, gzipped or not."
        raise InvalidInputError("store.path", str(path), "a store, as RolloutStore writes it", fix)
    raise StoreCorruptedError(
        f"{path} is no store: it does not begin as SQLite's files do. Name another file; or, where it was a store whose"
        " beginning was overwritten, move the file away: rollouts start from an empty store"
    )


def beginning(path: Path) -> bytes:
    """The first 16 bytes of a file that is not `in_use`; raise StoreError where it cannot be read."""
    assert not in_use(path), path
    try:
        return first_bytes(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}. Check who may read the file and its folder.") from error


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # no permission, a name too long, links in a circle
        raise StoreError(f"{path}: {error.strerror}. Check the name, and who may read its folder.") from error


def _is_folder(path: Path) -> bool:
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)
