"""Files as numbered records: JSON lines (plain, .gz, .zst) and Parquet. What a record means is for `reading`.

A line that is not JSON comes out as `Broken`, not as an error: whether it is fatal is the reader's choice.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolltree.errors import InvalidInputError, MissingDependencyError, RolltreeError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_COLUMNS = ("step", "prompt", "completion", "prompt_id", "sample", "prompt_token_ids", "token_ids")


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is not JSON."""

    line: str
    why: str


def list_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files; those of a folder in the order of their numbers."""
    for path in paths:
        if path.is_dir():
            yield from sorted((p for p in path.iterdir() if p.name.endswith(SUFFIXES)), key=_in_order)
        else:
            yield path


def _in_order(path: Path) -> tuple[int, str]:
    return number_of(path), path.name


def number_of(path: Path) -> int:
    """The last number in a file's name: verl writes 12.jsonl, TRL completions_00012.parquet."""
    numbers = re.findall(r"\d+", path.name)
    return int(numbers[-1]) if numbers else 0


def records(path: Path) -> Iterator[tuple[int, object]]:
    """Yield each record with its line (or row) number, from 1.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInputError: the file as a whole cannot be read: a damaged archive, no permission.
        MissingDependencyError: the format needs a package that is not installed.

    """
    try:
        yield from enumerate(_parquet(path), 1) if path.suffix == ".parquet" else _lines(path)
    except (FileNotFoundError, RolltreeError):
        raise
    except Exception as error:  # gzip, zlib, zstandard, pyarrow and the system have their own kinds
        raise InvalidInputError("FILE", str(path), "a readable, complete file", str(error)) from error


def _lines(path: Path) -> Iterator[tuple[int, object]]:
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except ValueError as error:  # JSON and UTF-8 errors alike
                yield number, Broken(line.decode("utf-8", "replace").strip(), str(error))


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[bytes]]:
    with ExitStack() as stack:
        if path.suffix == ".gz":
            yield stack.enter_context(gzip.open(path))
        elif path.suffix == ".zst":
            raw = stack.enter_context(path.open("rb"))
            yield io.BufferedReader(stack.enter_context(_zstandard().ZstdDecompressor().stream_reader(raw)))
        else:
            yield stack.enter_context(path.open("rb"))


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependencyError("reading .zst needs zstandard: pip install zstandard") from error
    return zstandard


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("reading .parquet needs pyarrow: pip install pyarrow") from error
    file = parquet.ParquetFile(path)
    rows: list[dict[str, Any]] = file.read([name for name in _COLUMNS if name in file.schema_arrow.names]).to_pylist()
    return rows
