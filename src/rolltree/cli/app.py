"""The command line: names, JSON keys and exit codes are a contract (docs/cli.md).

Exit 0: fine; 1: the thing asked about is not so; 2: the user's mistake, one line that names the fix.
"""

from __future__ import annotations

import sys

import typer

import rolltree
from rolltree.cli import bench, demo, doctor, gpu, replay, report, runahead, store, verl
from rolltree.errors import MissingDependencyError, RolltreeError

app = typer.Typer(
    name="rolltree",
    help="Faster RL rollouts, unchanged samples.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
bench.app.command(name="gpu", help=gpu.run.__doc__)(gpu.run)
bench.app.command(name="runahead-replay", help=runahead.run.__doc__)(runahead.run)
app.add_typer(bench.app, name="bench")
app.add_typer(store.app, name="store")
app.command(name="demo", help=demo.run.__doc__)(demo.run)
app.command(name="replay", help=replay.run.__doc__)(replay.run)
app.command(name="report", help=report.run.__doc__)(report.run)
app.command(name="verl-config", help=verl.run.__doc__)(verl.run)
app.command(name="verl-demo", help=verl.demo.__doc__)(verl.demo)
app.command(name="doctor", help=doctor.run.__doc__)(doctor.run)


def _version(value: bool) -> None:
    if value:
        typer.echo(rolltree.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Faster RL rollouts, unchanged samples."""


def main() -> None:
    """Run the command line; rolltree's own errors become one line and exit code 2."""
    try:
        app()
    except (RolltreeError, FileNotFoundError) as error:
        typer.echo(f"rolltree: {error}", err=True)
        sys.exit(1 if isinstance(error, MissingDependencyError) else 2)
