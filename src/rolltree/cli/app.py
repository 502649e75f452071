"""The command line: names, JSON keys and exit codes are a contract (docs/cli.md).

Exit 0: fine; 1: the thing asked about is not so; 2: the user's mistake, or the system's refusal, in one line that names
the fix; 130: Ctrl-C; 141: the reader of the output went away.
"""

from __future__ import annotations

import io
import sys

import typer

import rolltree
from rolltree.cli import bench, demo, doctor, gpu, replay, report, store, verl
from rolltree.cli.faults import Commands, sentence
from rolltree.cli.output import PIPE_CLOSED, silence
from rolltree.errors import MissingDependencyError, RolltreeError

app = typer.Typer(
    name="rolltree",
    cls=Commands,
    help="Faster RL rollouts, unchanged samples.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
bench.app.command(name="gpu", help=gpu.run.__doc__)(gpu.run)
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
    """Run the command line; rolltree's own errors and the system's become one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks ends nothing
    sys.exit(_run())


def _run() -> int | str | None:
    try:
        code = _called()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        silence()
        return PIPE_CLOSED
    except OSError as error:  # a full disk behind stdout shows up late
        silence()
        _say(sentence(error))
        return 2
    return code


def _called() -> int | str | None:
    try:
        app()
    except SystemExit as end:
        return end.code
    except RolltreeError as error:
        _say(str(error))
        return 1 if isinstance(error, MissingDependencyError) else 2
    return 0


def _say(text: str) -> None:
    typer.echo(f"rolltree: {text}", err=True)
