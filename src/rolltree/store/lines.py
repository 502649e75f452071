"""Trace files as lines of bytes: read plain or gzipped, whatever the name says; written beside, and renamed when whole.

No file is ever seen half written under its final name, and none is written over unless that was asked for.
"""

from __future__ import annotations

import gzip
import io
import os
import secrets
import stat
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, cast

from rolltree.errors import InvalidInputError, StoreError
from rolltree.store.location import SQLITE, as_path, beginning, in_use, kind_of

_GZIP = b"\x1f\x8b"


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number, from 1; blank ones are left out.

    Raises:
        InvalidInputError: no such file, one of another kind, or one that ends or breaks in the midst.
        StoreError: the system does not let us read it.

    """
    number = 0
    try:
        check_trace(path)
        with path.open("rb") as file, _unpacked(file) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidInputError("FILE", str(path), "a whole gzip file", f"After line {number}: {error}.") from error
    except OSError as error:
        raise StoreError(f"{path}, after line {number}: {error.strerror or error}") from error


def _unpacked(file: io.BufferedReader) -> AbstractContextManager[IO[bytes]]:
    if not file.peek(len(_GZIP)).startswith(_GZIP):
        return nullcontext(file)
    return cast("IO[bytes]", gzip.GzipFile(fileobj=file))


def check_trace(path: Path) -> Path:
    """`path`, which can be a trace file; errors as `read_lines`."""
    path = as_path(path, "FILE")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InvalidInputError(
            "FILE", str(path), "a file that exists and can be read", f"{error.strerror}."
        ) from error
    if stat.S_ISDIR(mode):
        raise InvalidInputError("FILE", str(path), "a file", "This is a folder.")
    if not stat.S_ISREG(mode):
        return path  # a pipe: its beginning cannot be looked at twice
    head = SQLITE if in_use(path) else beginning(path)
    if head == SQLITE:
        raise InvalidInputError("FILE", str(path), "recorded rollouts as JSON lines", "This is a store.")
    kind = kind_of(head)
    if kind and not head.startswith((b"{", b"[", _GZIP)):
        fix = f"This is a {kind}: unpack or convert it first."
        raise InvalidInputError("FILE", str(path), "recorded rollouts as JSON lines, plain or gzipped", fix)
    return path


def check_target(path: Path, source: Path | None, overwrite: bool) -> Path:
    """Where `path` really lies (behind links), checked before anything is read or written.

    Raises:
        InvalidInputError: no folder for it, a folder, a device, the source or its log, another compression than
            gzip, or a file that exists (without `overwrite`).
        StoreError: the system does not let us look.

    """
    path = as_path(path, "FILE")
    if path.suffix in (".zst", ".bz2", ".xz", ".parquet"):
        raise InvalidInputError("FILE", str(path), "named .jsonl or .jsonl.gz", "Others are not written.")
    try:
        real = Path(os.path.realpath(path))
        if not real.parent.is_dir():
            raise InvalidInputError("FILE", str(path), "a file in a folder that exists", "Make the folder first.")
        if source is not None and _is_of(real, source):
            raise InvalidInputError("FILE", str(path), "another file than the store", "Nothing was changed.")
        if real.exists() and not real.is_file():
            raise InvalidInputError("FILE", str(path), "a file", "This is a folder, a device or a pipe.")
        if real.exists() and (in_use(real) or beginning(real) == SQLITE):
            raise InvalidInputError("FILE", str(path), "another file than a store", "Nothing was changed.")
        if real.exists() and not overwrite:
            raise InvalidInputError("FILE", str(path), "a new file", "It exists: --force replaces it.")
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error
    return real


@contextmanager
def writing(path: Path, *, overwrite: bool, packed: bool) -> Iterator[IO[bytes]]:
    """A file that gets its name when the block has ended well; otherwise nothing has changed.

    Raises:
        StoreError: it cannot be written: full, no permission.
        InvalidInputError: it came into being meanwhile (without `overwrite`).

    """
    part = path.with_name(f".rolltree-{secrets.token_hex(6)}.part")
    try:
        with part.open("xb") as file:
            with gzip.GzipFile("", "wb", fileobj=file) if packed else nullcontext(file) as lines:
                yield cast("IO[bytes]", lines)
            file.flush()
            os.fsync(file.fileno())
        _name(part, path, overwrite)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}. Nothing was written") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _name(part: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        if path.exists():
            part.chmod(stat.S_IMODE(path.stat().st_mode))
        part.replace(path)
        return
    try:
        os.link(part, path)  # unlike a rename, never onto a file that came meanwhile
    except FileExistsError as error:
        raise InvalidInputError("FILE", str(path), "a new file", "It came into being meanwhile.") from error
    except OSError:  # a file system without hard links
        part.rename(path)


def _is_of(path: Path, source: Path) -> bool:
    """Whether `path` is the store or one of the files beside it."""
    files = [source.with_name(source.name + tail) for tail in ("", "-wal", "-shm", "-journal")]
    return any(path == Path(os.path.realpath(file)) or _same(path, file) for file in files)


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
