"""Files that appear whole or not at all, and JSON that every parser reads.

`beside` writes next to the target and renames: a run that is killed, or a disk that fills up, leaves the old file as it
was. JSON has no NaN and no infinity; what cannot be a number is null. Nothing here knows a command.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

_STEM = 80  # characters of a name that its draft repeats: file names end at 255 bytes


def plain(value: Any) -> Any:
    """Return `value` as JSON allows it: NaN and infinity become None, numpy's numbers Python's, tuples lists."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain(value.tolist())
    return value


def to_json(document: Any, *, indent: int | None = None) -> str:
    """Return the document as strict JSON; what JSON has no form for is written as its text."""
    return json.dumps(plain(document), indent=indent, allow_nan=False, default=str)


@contextmanager
def beside(path: str | PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """Yield a path to write to, in the target's folder; it is renamed to `path` when the block ends well.

    A device or a pipe is written to directly; through a link, the file that it points to is replaced.

    Raises:
        OSError: the folder is missing or not writable, the disk is full, the target is a folder. FileExistsError:
            without `replace`, it came into being meanwhile.

    """
    target = Path(path)
    if target.exists() and not target.is_file():
        yield target
        return
    target = Path(os.path.realpath(target))
    suffix = target.suffix if len(target.suffix) < _STEM else ""
    draft = target.with_name(f".{target.stem[:_STEM]}.{secrets.token_hex(4)}{suffix}")
    try:
        yield draft
        if replace:
            if target.exists():
                draft.chmod(stat.S_IMODE(target.stat().st_mode))
            draft.replace(target)
        else:
            _name_new(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _name_new(draft: Path, target: Path) -> None:
    try:
        os.link(draft, target)  # unlike a rename, never onto a file that came meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        draft.rename(target)


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write a UTF-8 text file, whole or not at all; see `beside`."""
    with beside(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
