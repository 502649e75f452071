"""How commands speak: a summary for a person on stderr or a terminal, one JSON document as the last line of stdout.

Paths that a command will write to are looked at before its work begins; files appear whole or not at all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rolltree.errors import InvalidInputError
from rolltree.writing import to_json, write_text

FILE_WIDTH = 132
PIPE_CLOSED = 141
"""Exit code when the reader of the output went away, as a shell reports SIGPIPE."""
_FIGURES = (".png", ".svg", ".pdf")


class _Screen(Console):
    """A console that ends quietly when nobody reads on."""

    def on_broken_pipe(self) -> NoReturn:
        """Leave without a word."""
        silence()
        raise SystemExit(PIPE_CLOSED)


def console(json_output: bool) -> Console:
    """Return where a person reads: stdout, or stderr when stdout carries JSON."""
    screen = _Screen(stderr=json_output)
    return screen if screen.is_terminal else _Screen(stderr=json_output, width=FILE_WIDTH)


def silence() -> None:
    """Send what is still buffered for stdout nowhere, so that Python's exit does not complain about it."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # no real file behind it
        return


def check_file(path: Path, option: str, inputs: Iterable[Path] = ()) -> Path:
    """See that a file can be written to `path`: its folder is there and writable, and it is none of the inputs.

    Raises:
        InvalidInputError: it cannot; nothing was written.

    """
    if path.is_dir():
        raise InvalidInputError(option, str(path), "a file", "It is a folder: add a file name.")
    if path.exists() and not path.is_file():
        return path  # a device or a pipe
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InvalidInputError(option, str(path), "in a folder that exists", f"Make it first: mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InvalidInputError(option, str(path), "writable", "Choose another place, or change its permissions.")
    for given in inputs:
        if path.exists() and _is_read(path, given):
            raise InvalidInputError(option, str(path), f"another file than the input {given}", "Choose another name.")
    return path


def _is_read(path: Path, given: Path) -> bool:
    """Whether a file is one of the inputs behind `given`: the file itself, or a recording in the folder."""
    from rolltree.replay.files import SUFFIXES

    if not given.is_dir():
        return given.exists() and path.samefile(given)
    return path.name.endswith(SUFFIXES) and given.resolve() in path.resolve().parents


def check_folder(path: Path, option: str) -> Path:
    """See that a folder can be made and filled at `path`.

    Raises:
        InvalidInputError: it cannot; nothing was made.

    """
    above = path.absolute()
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise InvalidInputError(option, str(path), "a folder", f"{above} is a file.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InvalidInputError(option, str(path), "writable", "Choose another place, or change its permissions.")
    return path


def check_figure(path: Path, option: str = "--plot") -> Path:
    """The same as `check_file` for a figure, whose name says how it is drawn.

    Raises:
        InvalidInputError: it cannot be written, or is no name of a figure.

    """
    check_file(path, option)
    if path.suffix.lower() not in _FIGURES:
        raise InvalidInputError(option, str(path), f"a name that ends in {', '.join(_FIGURES)}")
    return path


def check_outputs(inputs: Sequence[Path], **written: Path | None) -> None:
    """See that what a command writes is none of its inputs, and no file is written twice.

    Args:
        inputs: files and folders that are read.
        written: option, without its dashes, and path.

    Raises:
        InvalidInputError: a path is taken.

    """
    taken: dict[Path, str] = {}
    for name, path in written.items():
        if path is None or (path.exists() and not path.is_file()):
            continue
        option = f"--{name.replace('_', '-')}"
        check_file(path, option, inputs)
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise InvalidInputError(option, str(path), f"another file than {other}", "Choose another name.")


def _out(path: Path | None) -> Path | None:
    return path and check_file(path, "--out")


def _figure(path: Path | None) -> Path | None:
    return path and check_figure(path)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line.")]
Out = Annotated[Path | None, typer.Option("--out", callback=_out, help="Write the JSON document to this file.")]
Plot = Annotated[
    Path | None, typer.Option("--plot", callback=_figure, help="Draw the figure into this file: .png, .svg or .pdf.")
]


def finish(document: dict[str, object], *, json_output: bool, out: Path | None) -> None:
    """Write the document to `out`, and as the last line of stdout when asked; NaN and infinity are null in it."""
    if out is not None:
        write_text(out, to_json(document, indent=1) + "\n")
    if json_output:
        print(to_json(document))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a rich table; the first column is text, the others are numbers."""
    made = Table(title=Text(title), title_justify="left")  # a path or a name may look like markup
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*[Text(format_cell(cell)) for cell in row])
    return made


def format_cell(value: object) -> str:
    """Return three significant digits for numbers, a dash for what was not measured."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
