"""`rolltree store info|verify|compact|import|export`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rolltree.cli.output import console, finish, table

app = typer.Typer(help="Look after the durable store of rollouts.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line.")]
Store = Annotated[Path, typer.Argument(help="The store's file.", show_default=False)]


@app.command()
def info(path: Store, json_output: Json = False) -> None:
    """What a store holds.

    Example: rolltree store info rollouts.db
    """
    from rolltree.store import info

    found = asdict(info(path))
    found["bytes_per_token"] = found["bytes"] / found["tokens"] if found["tokens"] else None
    console(json_output).print(table(str(path), ["", "value"], [[k.replace("_", " "), v] for k, v in found.items()]))
    finish({"path": str(path), **found}, json_output=json_output, out=None)


@app.command()
def verify(path: Store, json_output: Json = False) -> None:
    """Read everything in a store: pages, links, checksums. Exit 1 when something is damaged.

    Example: rolltree store verify rollouts.db
    """
    from rolltree.store import verify

    screen = console(json_output)
    with screen.status("reading") as status:
        faults = verify(path, lambda count: status.update(f"{count:,} rollouts read"))
    screen.print("\n".join(faults) if faults else f"{path}: sound", markup=False, highlight=False, soft_wrap=True)
    finish({"path": str(path), "sound": not faults, "faults": faults}, json_output=json_output, out=None)
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
    with screen.status("rewriting the file"):
        before, after = compact(path, window=window)
    rows = [[name, getattr(before, name), getattr(after, name)] for name in ("prompts", "rollouts", "tokens", "bytes")]
    screen.print(table(str(path), ["", "before", "after"], rows))
    document: dict[str, Any] = {"path": str(path), "before": asdict(before), "after": asdict(after)}
    finish(document, json_output=json_output, out=None)


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="The store's file, made when missing.", show_default=False)],
    traces: Annotated[list[Path], typer.Argument(help="Trace files, .jsonl or .jsonl.gz.", show_default=False)],
    json_output: Json = False,
) -> None:
    """Add recorded rollouts to a store, which is made when missing.

    Example: rolltree store import rollouts.db earlier.jsonl.gz later.jsonl.gz
    """
    from rolltree.store import RolloutStore
    from rolltree.store.traces import import_traces

    for file in traces:
        file.stat()  # a missing one is a mistake, found before anything is written
    screen, total, begin = console(json_output), 0, time.perf_counter()
    with RolloutStore(path) as store, screen.status("") as status:
        for file in traces:
            total += import_traces(store, file, lambda count: status.update(f"{count:,} rollouts added"))
    seconds = time.perf_counter() - begin
    screen.print(f"{total:,} rollouts added to {path} in {seconds:.2f} s", markup=False, soft_wrap=True)
    finish({"path": str(path), "rollouts": total, "seconds": seconds}, json_output=json_output, out=None)


@app.command()
def export(
    path: Store,
    out: Annotated[Path, typer.Argument(help="Trace file, gzipped when it ends in .gz.", show_default=False)],
    json_output: Json = False,
) -> None:
    """Write all rollouts of a store as a trace file, which `rolltree replay` reads.

    Example: rolltree store export rollouts.db rollouts.jsonl.gz
    """
    from rolltree.store import RolloutStore
    from rolltree.store.traces import export_traces
    from rolltree.store.upkeep import existing

    screen = console(json_output)
    with RolloutStore(existing(path)) as store, screen.status("") as status:
        count = export_traces(store, out, lambda count: status.update(f"{count:,} rollouts written"))
    screen.print(f"{count:,} rollouts written to {out}", markup=False, highlight=False, soft_wrap=True)
    finish({"path": str(path), "out": str(out), "rollouts": count}, json_output=json_output, out=None)
