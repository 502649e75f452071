"""The command line: names, JSON keys and exit codes are a contract (docs/cli.md).

Exit 0: fine; 1: the thing asked about is not so; 2: the user's mistake, or the system's refusal, in one line that names
the fix; 130: Ctrl-C; 141: the reader of the output went away.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import typer

import rolltree
from rolltree.cli import bench, demo, doctor, replay, report, store, verl
from rolltree.cli.faults import Commands, sentence
from rolltree.cli.output import PIPE_CLOSED, silence
from rolltree.errors import InvalidInputError, MissingDependencyError, RolltreeError

app = typer.Typer(
    name="rolltree",
    cls=Commands,
    help="Faster RL rollouts, unchanged samples.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(bench.app, name="bench")
app.add_typer(store.app, name="store")
app.command(name="demo", help=demo.run.__doc__)(demo.run)
app.command(name="replay", help=replay.run.__doc__)(replay.run)
app.command(name="report", help=report.run.__doc__)(report.run)
app.command(name="verl-config", help=verl.run.__doc__)(verl.run)
app.command(name="doctor", help=doctor.run.__doc__)(doctor.run)


def _moved(group: typer.Typer, name: str, target: str) -> None:
    """Answer a command of 0.1 that is no longer in the wheel, whatever its options, with where it is."""

    @group.command(name, hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def _() -> None:
        raise InvalidInputError("command", name, "one of `--help`", f"It is not in the wheel; in a checkout: {target}.")


_moved(bench.app, "gpu", "make gpu-bench")
_moved(app, "verl-demo", "make verl-demo")
_moved(bench.app, "runahead", "python -m benchmarks.runahead run")
_moved(bench.app, "runahead-replay", "python -m benchmarks.runahead replay")


def _version(value: bool) -> None:
    if value:
        typer.echo(rolltree.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Faster RL rollouts, unchanged samples."""


def main(program: Callable[[], object] = app) -> None:
    """Run a command line, the package's or a script's; rolltree's and the system's errors: one line, exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks ends nothing
    sys.exit(_run(program))


def _run(program: Callable[[], object]) -> int | str | None:
    try:
        code = _called(program)
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


def _called(program: Callable[[], object]) -> int | str | None:
    try:
        program()
    except SystemExit as end:
        return end.code
    except RolltreeError as error:
        _say(str(error))
        return 1 if isinstance(error, MissingDependencyError) else 2
    return 0


def _say(text: str) -> None:
    typer.echo(f"rolltree: {text}", err=True)
