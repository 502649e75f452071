"""`make verl-demo`: verl's own GRPO on this CPU, alone and with rolltree; the options and the table."""

from __future__ import annotations

from typing import Annotated

import typer

from rolltree.cli.app import main
from rolltree.cli.output import Json, Out, console, finish, table
from tests.verl_on_cpu.demo import COLUMNS, demo_settings, passed, run_demo, table_rows

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def run(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the same prompts.")] = 4,
    json_output: Json = False,
    out: Out = None,
) -> None:
    """Train by verl's own GRPO on this CPU, alone and with rolltree, and compare.

    Greedy rollouts of the first weights must be the same; exit code 1 when they are not.

    Example: make verl-demo ARGS="--epochs 2"
    """
    screen = console(json_output)
    document = run_demo(demo_settings(epochs), screen.print)
    screen.print(table("verl's GRPO with and without rolltree", COLUMNS, table_rows(document)))
    identical, rollouts = document["identical_greedy_rollouts"], document["greedy_rollouts"]
    screen.print(f"Identical greedy rollouts of the first weights: {identical} of {rollouts}.")
    finish(document, json_output=json_output, out=out)
    if not passed(document):
        raise typer.Exit(1)


if __name__ == "__main__":
    main(app)
