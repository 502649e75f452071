"""Files as numbered records: JSON lines (see `traces.lines`) and Parquet. What a record means is for `parsing`.

A line that is not JSON comes out as `Broken`, not as an error, and so does the place where a file ends before its end
(a compressed file that was cut off or damaged, a Parquet file without its footer): whether it is fatal is the reader's
choice. What stood before such a place was yielded before it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rolltree.errors import MissingDependencyError, RolltreeError
from rolltree.traces.lines import Broken, decode, lines

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_EVALUATION = re.compile(r"(evals?|evaluation|val|validation)([_-].*)?|.*[_-]evals?", re.IGNORECASE)


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
        read = ((at, decode(line)) for at, line in lines(path))
        for number, record in _parquet(path) if path.suffix == ".parquet" else read:
            yield number, record
    except RolltreeError:
        raise
    except Exception as error:  # gzip, zlib, zstandard, pyarrow and the system have their own kinds
        if isinstance(error, OSError) and error.filename is not None:  # it could not be opened at all
            raise
        yield number + 1, Broken("", f"the file cannot be read to its end: {error}", ends_file=True)


def _parquet(path: Path) -> Iterator[tuple[int, object]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        fix = "pip install pyarrow, or all that replay reads: pip install 'rolltree[replay]'"
        raise MissingDependencyError(f"{path}: reading .parquet needs pyarrow: {fix}") from error
    path.stat()  # its own errors for a missing file, not pyarrow's
    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
