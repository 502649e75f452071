"""Files of JSON lines: plain, gzipped or Zstandard, by their first bytes; what a line says is for others.

The one reader of all that are read here: by `rolltree store import`, `rolltree replay`, the hosts' `load` option and
the benches. A compressed file that was cut off is never taken for a whole one.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rolltree.errors import MissingDependencyError

GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PLAIN = b"{[ \t\r\n\xef"  # how JSON lines begin, a byte order mark included
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is not JSON, or the end of a file that ends before its end."""

    line: str
    why: str
    ends_file: bool = False
    """The rest of the file is lost."""


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number, from 1; blank ones are left out.

    Raises:
        OSError: there is no such file, or it may not be read.
        MissingDependencyError: it needs a package that is not installed.
        Exception: of the decompressor: the file is damaged, or ends early. What stood before was yielded.

    """
    with ExitStack() as stack:
        for number, line in enumerate(_opened(path, stack), 1):
            if line.strip():
                yield number, line


def decode(line: bytes) -> object:
    """Return what a line of JSON holds; `Broken` where it is none. No exception leaves it."""
    try:
        return json.loads(line)
    except RecursionError:
        why = "nested too deeply"
    except (ValueError, OverflowError, MemoryError) as error:  # JSON and UTF-8 errors alike
        why = str(error)
    return Broken(line[:400].decode("utf-8", "replace").strip(), why)


def _opened(path: Path, stack: ExitStack) -> Iterable[bytes]:
    raw = stack.enter_context(path.open("rb"))
    head = raw.peek(len(ZSTANDARD))
    named = "" if head[:1] and head[:1] in _PLAIN else path.suffix
    if head.startswith(GZIP) or named == ".gz":
        return io.BufferedReader(Frames(raw, lambda: zlib.decompressobj(31)), _CHUNK)
    if head.startswith(ZSTANDARD) or named == ".zst":
        zstandard = _zstandard(path)
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


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError as error:
        fix = "pip install zstandard, or all that replay reads: pip install 'rolltree[replay]'"
        raise MissingDependencyError(f"{path}: reading .zst needs zstandard: {fix}") from error
    return zstandard
