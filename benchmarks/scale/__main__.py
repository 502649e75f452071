"""`python -m benchmarks.scale run`: options and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rolltree.cli.app import main
from rolltree.cli.output import Json, Out, check_outputs, console, finish, table

ROOT = Path(__file__).resolve().parent.parent.parent
BEGIN, END = "<!-- begin measured -->\n", "<!-- end measured -->\n"
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def scale() -> None:
    """What memory buys at the size of a real training."""


@app.command()
def run(
    files: Annotated[list[Path], typer.Argument(help="Recorded rollouts, a file for each checkpoint, oldest first.")],
    prompts: Annotated[int, typer.Option(min=1, help="Of 17,000; the capacity shrinks alike.")] = 17_000,
    samples: Annotated[int, typer.Option(min=1, help="Of a prompt and epoch.")] = 16,
    step: Annotated[int, typer.Option(min=1, help="Prompts of a training step.")] = 512,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    slots: Annotated[int, typer.Option(min=1, help="Of the engine.")] = 256,
    capacity: Annotated[int, typer.Option(min=1, help="GiB of all trees of the whole training.")] = 4,
    store: Annotated[str, typer.Option(help="A new FOLDER for the stores, or temporary.")] = "temporary",
    case: Annotated[list[str] | None, typer.Option("--case", help="Repeat it. Default: all.")] = None,
    json_output: Json = False,
    out: Out = None,
) -> None:
    """Epochs over many prompts, with everything in memory and within a capacity.

    Example: python -m benchmarks.scale run step400.jsonl.gz step800.jsonl.gz --prompts 1062 --step 32
    """
    from benchmarks.scale.run import CASES, Scale
    from benchmarks.scale.run import run as run_cases
    from benchmarks.scale.workload import Shape

    check_outputs(files, out=out)
    screen = console(json_output)
    shape = Shape(prompts=prompts, samples=samples, step=step)
    chosen = Scale(
        files=tuple(files), shape=shape, epochs=epochs, capacity=capacity * 2**30, slots=slots, store=store
    )  # fmt: skip
    document = run_cases(chosen, case or list(CASES), lambda name: screen.print(name))
    keys = ["case", "tokens_per_step", "share_of_all_in_memory", "peak_tree_bytes", "peak_rss_bytes", "store_bytes"]
    keys += ["evicted_prompts", "rebuilt_prompts", "open_seconds", "cpu_seconds"]
    rows = [[one.get(key) for key in keys] for one in document["cases"]]
    screen.print(table("Memory", [key.replace("_", " ") for key in keys], rows))
    finish(document, json_output=json_output, out=out)


@app.command()
def model(
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 when the page is not up to date; write nothing.")
    ] = False,
) -> None:
    """Write the tables of docs/scale.md from the measured figures.

    Example: python -m benchmarks.scale model
    """
    from benchmarks.scale.model import tables

    page, folder = ROOT / "docs" / "scale.md", ROOT / "benchmarks"
    before, rest = page.read_text().split(BEGIN)
    text = before + BEGIN + tables(folder) + END + rest.split(END)[1]
    if check:
        raise typer.Exit(int(text != page.read_text()))
    page.write_text(text)


if __name__ == "__main__":
    main(app)
