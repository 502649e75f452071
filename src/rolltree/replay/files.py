"""Files as numbered records: JSON lines (plain, .gz, .zst) and Parquet. What a record means is for `parsing`.

A line that is not JSON comes out as `Broken`, not as an error, and so does the place where a file ends before its end
(a compressed file that was cut off or damaged, a Parquet file without its footer): whether it is fatal is the reader's
choice. What stood before such a place was yielded before it.
"""

from __future__ import annotations

import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rolltree.errors import MissingDependencyError, RolltreeError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_EVALUATION = re.compile(r"(evals?|evaluation|val|validation)([_-].*)?|.*[_-]evals?", re.IGNORECASE)
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is not JSON, or the end of a file that ends before its end."""

    line: str
    why: str
    ends_file: bool = False
    """The rest of the file is lost."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The files behind some paths."""

    files: list[Path]
    evaluation: list[Path]
    """Files inside a named folder whose place says that they hold evaluation rollouts: not read."""


def list_files(paths: Iterable[Path]) -> Listed:
    """Find the files; those of a folder, and of the folders in it, in the order of the numbers in their names."""
    listed = Listed([], [])
    for path in paths:
        if not path.is_dir():
            listed.files.append(path)
            continue
        below = [Path(folder, name) for folder, _, names in os.walk(path, onerror=_raise) for name in names]
        below = [file for file in below if file.name.endswith(SUFFIXES)]
        for file in sorted(below, key=lambda file: in_order(file.relative_to(path))):
            inside = [*file.relative_to(path).parts[:-1], re.sub(r"\..*", "", file.name)]
            is_evaluation = any(_EVALUATION.fullmatch(part) for part in inside)
            (listed.evaluation if is_evaluation else listed.files).append(file)
    return listed


def _raise(error: OSError) -> None:
    raise error


def in_order(path: Path) -> list[tuple[int, int, str]]:
    """A sorting key under which 9 comes before 10."""
    parts = re.split(r"([0-9]+)", str(path))
    return [(0, int(part[:18]), part) if part.isdigit() else (1, 0, part) for part in parts]


def records(path: Path) -> Iterator[tuple[int, object]]:
    """Yield each record with its line (or row) number, from 1.

    Raises:
        OSError: there is no such file, or it may not be read.
        MissingDependencyError: the format needs a package that is not installed.

    """
    number = 0
    try:
        for number, record in _parquet(path) if path.suffix == ".parquet" else _lines(path):
            yield number, record
    except RolltreeError:
        raise
    except Exception as error:  # gzip, zlib, zstandard, pyarrow and the system have their own kinds
        if isinstance(error, OSError) and error.filename is not None:  # it could not be opened at all
            raise
        yield number + 1, Broken("", f"the file cannot be read to its end: {error}", ends_file=True)


def decode(line: bytes) -> object:
    """Return what a line of JSON holds; `Broken` where it is none. No exception leaves it."""
    try:
        return json.loads(line)
    except RecursionError:
        why = "nested too deeply"
    except (ValueError, OverflowError, MemoryError) as error:  # JSON and UTF-8 errors alike
        why = str(error)
    return Broken(line[:400].decode("utf-8", "replace").strip(), why)


def _lines(path: Path) -> Iterator[tuple[int, object]]:
    with ExitStack() as stack:
        for number, line in enumerate(_opened(path, stack), 1):
            if line.strip():
                yield number, decode(line)


def _opened(path: Path, stack: ExitStack) -> Iterable[bytes]:
    raw = stack.enter_context(path.open("rb"))
    if path.suffix == ".gz":
        return io.BufferedReader(Frames(raw, lambda: zlib.decompressobj(31)), _CHUNK)
    if path.suffix == ".zst":
        zstandard = _zstandard()
        return io.BufferedReader(Frames(raw, lambda: zstandard.ZstdDecompressor().decompressobj()), _CHUNK)
    return raw


class Frames(io.RawIOBase):
    """A compressed file, frame by frame; unlike the libraries' readers it never takes a cut-off file for a whole one.

    Args:
        raw: the compressed bytes.
        begin: makes the decompressor of a frame: `decompress(bytes)`, `eof`, `unused_data`.

    """

    def __init__(self, raw: BinaryIO, begin: Callable[[], Any]) -> None:
        self._raw, self._begin = raw, begin
        self._frame: Any = None
        self._started = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer.

        Raises:
            EOFError: the file ends inside a frame, or holds none.

        """
        while not self._ready:
            chunk = self._raw.read(_CHUNK)
            if not chunk:
                if self._frame is not None or not self._started:
                    raise EOFError("it ends before the end of the compressed data")
                return 0
            self._feed(chunk)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _feed(self, chunk: bytes) -> None:
        parts = []
        while chunk:
            if self._frame is None:
                chunk = chunk.lstrip(b"\0") if self._started else chunk  # some writers pad the end with zeros
                if not chunk:
                    break
                self._frame, self._started = self._begin(), True
            parts.append(self._frame.decompress(chunk))
            chunk = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        self._ready = memoryview(b"".join(parts))


def _missing(suffix: str, package: str) -> MissingDependencyError:
    fix = f"pip install {package}, or all that replay reads: pip install 'rolltree[replay]'"
    return MissingDependencyError(f"reading .{suffix} needs {package}: {fix}")


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise _missing("zst", "zstandard") from error
    return zstandard


def _parquet(path: Path) -> Iterator[tuple[int, object]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise _missing("parquet", "pyarrow") from error
    path.stat()  # its own errors for a missing file, not pyarrow's
    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
