"""`rolltree store info|verify|compact|import|export`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from rolltree.cli.output import console, finish, table
from rolltree.errors import InvalidInputError, StoreError

app = typer.Typer(help="Look after the durable store of rollouts.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line.")]
Store = Annotated[Path, typer.Argument(help="The store's file.", show_default=False)]
MOST_SHOWN = 5  # bad lines that are named


@contextmanager
def sentences(path: Path) -> Iterator[None]:
    """Turn what the system refuses into a StoreError, which the command line says in one line and exit code 2."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{shown(error.filename or path)}: {error.strerror or error}") from error
    except (UnicodeError, MemoryError, RecursionError) as error:
        raise StoreError(f"{shown(path)}: {error or type(error).__name__}") from error


def shown(path: object) -> str:
    """A path as a terminal can show it, whatever bytes it is of."""
    return os.fsencode(str(path)).decode("utf-8", "backslashreplace")


@app.command()
def info(path: Store, json_output: Json = False) -> None:
    """What a store holds.

    Example: rolltree store info rollouts.db
    """
    from rolltree.store import info

    with sentences(path):
        found = asdict(info(path))
    found["bytes_per_token"] = found["bytes"] / found["tokens"] if found["tokens"] else None
    rows = [[k.replace("_", " "), v] for k, v in found.items()]
    console(json_output).print(table(escape(shown(path)), ["", "value"], rows))
    finish({"path": shown(path), **found}, json_output=json_output, out=None)


@app.command()
def verify(path: Store, json_output: Json = False) -> None:
    """Read everything in a store: pages, links, checksums. Exit 1 when something is damaged.

    Example: rolltree store verify rollouts.db
    """
    from rolltree.store import verify

    screen = console(json_output)
    with sentences(path), screen.status("reading") as status:
        faults = [shown(fault) for fault in verify(path, lambda count: status.update(f"{count:,} rollouts read"))]
    _say(screen, "\n".join(faults) if faults else f"{shown(path)}: sound")
    finish({"path": shown(path), "sound": not faults, "faults": faults}, json_output=json_output, out=None)
    if faults:
        raise typer.Exit(1)


@app.command()
def compact(
    path: Store,
    window: Annotated[
        int | None, typer.Option(min=1, help="Rollouts of each prompt to keep, the latest. Default: all.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Forget old rollouts and give the space back to the disk.

    Example: rolltree store compact rollouts.db --window 64
    """
    from rolltree.store import compact

    screen = console(json_output)
    with sentences(path), screen.status("rewriting the file"):
        before, after = compact(path, window=window)
    rows = [[name, getattr(before, name), getattr(after, name)] for name in ("prompts", "rollouts", "tokens", "bytes")]
    screen.print(table(escape(shown(path)), ["", "before", "after"], rows))
    document: dict[str, Any] = {"path": shown(path), "before": asdict(before), "after": asdict(after)}
    finish(document, json_output=json_output, out=None)


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="The store's file, made when missing.", show_default=False)],
    traces: Annotated[list[Path], typer.Argument(help="Trace files: JSON lines, packed or not.", show_default=False)],
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Leave out lines that are no rollout, name the first and count.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Add recorded rollouts to a store, which is made when missing.

    Example: rolltree store import rollouts.db earlier.jsonl.gz later.jsonl.gz
    """
    from rolltree.store import RolloutStore
    from rolltree.store.traces import check_trace, import_traces

    screen, total, begin, bad = console(json_output), 0, time.perf_counter(), list[InvalidInputError]()
    with sentences(path):
        for file in traces:
            check_trace(file)  # a missing one is a mistake, found before anything is written
        with RolloutStore(path) as store, screen.status("") as status:
            for file in traces:
                total += import_traces(
                    store, file, lambda count: status.update(f"{count:,} rollouts added"),
                    bad_line=bad.append if skip_bad_lines else None,
                )  # fmt: skip
    seconds = time.perf_counter() - begin
    for error in bad[:MOST_SHOWN]:
        _say(screen, f"left out: {shown(error)}")
    _say(screen, f"{total:,} rollouts added to {shown(path)} in {seconds:.2f} s" + _left_out(len(bad)))
    document = {"path": shown(path), "rollouts": total, "skipped_lines": len(bad), "seconds": seconds}
    finish(document, json_output=json_output, out=None)


@app.command()
def export(
    path: Store,
    out: Annotated[Path, typer.Argument(help="Trace file, gzipped when it ends in .gz.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    json_output: Json = False,
) -> None:
    """Write all rollouts of a store as a trace file, which `rolltree replay` and `rolltree store import` read.

    Example: rolltree store export rollouts.db rollouts.jsonl.gz
    """
    from rolltree.store import RolloutStore
    from rolltree.store.location import existing
    from rolltree.store.traces import check_target, export_traces

    screen = console(json_output)
    with sentences(path):
        check_target(out, existing(path), force)  # before the store is opened
        with RolloutStore(path, make=False) as store, screen.status("") as status:
            told = lambda count: status.update(f"{count:,} rollouts written")  # noqa: E731
            count = export_traces(store, out, told, overwrite=force)
    _say(screen, f"{count:,} rollouts written to {shown(out)}")
    finish({"path": shown(path), "out": shown(out), "rollouts": count}, json_output=json_output, out=None)


def _say(screen: Any, text: str) -> None:
    screen.print(text, markup=False, highlight=False, soft_wrap=True)


def _left_out(lines: int) -> str:
    return f"; {lines:,} lines left out" if lines else ""
