"""Stores from and to trace files: JSON lines (see `rolltree.traces`), gzipped when the name ends in .gz.

No file is ever seen half written under its final name, and none is written over unless that was asked for.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import IO, cast

from rolltree.errors import InvalidInputError, StoreError
from rolltree.store.location import as_path, beginning, in_use
from rolltree.store.store import RolloutStore
from rolltree.traces import format as trace_format
from rolltree.traces.format import SQLITE, BadLine, line_of, read_rollouts
from rolltree.traces.rollout import StoredRollout
from rolltree.writing import beside

Progress = Callable[[int], None]


def import_traces(
    store: RolloutStore, path: str | PathLike[str], progress: Progress = lambda rollouts: None, *,
    bad_line: BadLine | None = None,
) -> int:  # fmt: skip
    """Add every rollout of a trace file, in its order; returns how many.

    Args:
        store: where to.
        path: see `read_rollouts`, and so `bad_line`.
        progress: called with how many so far.
        bad_line: called with each line that is no rollout, which is then left out; None: the first one is an error.

    Raises:
        InvalidInputError: as `read_rollouts`; what stood before was added.
        StoreError: the file cannot be read, or the store cannot be written.

    """
    count = 0
    for count, rollout in enumerate(read_rollouts(check_trace(as_path(path, "FILE")), bad_line), 1):
        store.put(rollout)
        if count % 4096 == 0:  # a bound on what waits in memory
            store.flush()
            progress(count)
    store.flush()
    return count


def export_traces(
    rollouts: Iterable[StoredRollout], path: str | PathLike[str], progress: Progress = lambda rollouts: None, *,
    overwrite: bool = False,
) -> int:  # fmt: skip
    """Write rollouts as a trace file; returns how many.

    The file gets its name when it is whole; where that fails, nothing has changed. Where the sample is not known, the
    rollouts of a prompt and step are counted, and the line says so (`sample_counted`).

    Raises:
        InvalidInputError: no place for a file, the store itself, or a file that exists (without `overwrite`).
        StoreError: the store cannot be read, or the file cannot be written.

    """
    source = rollouts.path if isinstance(rollouts, RolloutStore) else None
    path = as_path(path, "FILE")
    target = check_target(path, source, overwrite)
    count, samples = 0, Counter[tuple[str, int]]()
    with _written(target, overwrite=overwrite, packed=path.suffix == ".gz") as lines:
        for count, rollout in enumerate(rollouts, 1):
            text = json.dumps(line_of(rollout, samples), separators=(",", ":"), allow_nan=False)
            lines.write(text.encode("ascii") + b"\n")
            if count % 4096 == 0:
                progress(count)
    return count


def check_trace(path: Path) -> Path:
    """`path`, which can be a trace file and no store that is in use; errors as `traces.format.read_rollouts`."""
    path = as_path(path, "FILE")
    if in_use(path):  # it must not even be opened
        raise InvalidInputError("FILE", str(path), "recorded rollouts as JSON lines", "This is a store.")
    return trace_format.check_trace(path)


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
def _written(path: Path, *, overwrite: bool, packed: bool) -> Iterator[IO[bytes]]:
    """A file that gets its name when the block has ended well; otherwise nothing has changed.

    Raises:
        StoreError: it cannot be written: full, no permission.
        InvalidInputError: it came into being meanwhile (without `overwrite`).

    """
    try:
        with beside(path, replace=overwrite) as draft, draft.open("xb") as file:
            with gzip.GzipFile("", "wb", fileobj=file) if packed else nullcontext(file) as lines:
                yield cast("IO[bytes]", lines)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise InvalidInputError("FILE", str(path), "a new file", "It came into being meanwhile.") from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}. Nothing was written") from error


def _is_of(path: Path, source: Path) -> bool:
    """Whether `path` is the store or one of the files beside it."""
    files = [source.with_name(source.name + tail) for tail in ("", "-wal", "-shm", "-journal")]
    return any(path == Path(os.path.realpath(file)) or _same(path, file) for file in files)


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
