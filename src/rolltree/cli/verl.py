"""`rolltree verl-config`: the lines of configuration that turn rolltree on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rolltree.cli.output import console, finish


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
