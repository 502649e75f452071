"""Runs the demo: checks what is installed, makes the two sides, races them, draws the figure, returns the document."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rolltree.demo import figure, report
from rolltree.demo.config import DemoConfig
from rolltree.demo.interrupt import patient_interrupts
from rolltree.demo.metrics import batch_writer
from rolltree.demo.quiet import quiet
from rolltree.demo.race import Race, Side
from rolltree.errors import MissingDependencyError

NEEDED = ("torch", "transformers", "trl", "datasets")


def run(config: DemoConfig | None = None, console: Console | None = None) -> report.Document:
    """Run both sides and return what they did; Ctrl-C ends early with the epochs that are done.

    Starts processes by "spawn": call it from a script only below `if __name__ == "__main__":`.

    Args:
        config: What to run; None runs the default.
        console: Where progress bars go, if it is a terminal; None takes standard error.

    Returns:
        The document of `rolltree.demo.report.document`; see `passed` and `render` there.

    Raises:
        RolltreeError: one of the trainings failed; the message has its traceback.
        MissingDependencyError: a package is not installed; the message has the pip command.
    """
    config = config or DemoConfig()
    _check_installed(config)
    start = time.perf_counter()
    with patient_interrupts(), quiet():
        plain, fast = _make_sides(config)
        race = Race(plain, fast, config.steps_per_epoch, config.epochs)
        write = batch_writer(config)
        with _progress(config, console or Console(stderr=True)) as show:
            race.run(_both(show, write))
        rows = race.finished()
        plot = config.plot if rows else None
        result = report.document(config, race, plot, time.perf_counter() - start)
        if plot is not None:
            figure.draw(result["epochs"], plot, _title(config))
    return result


def _both(one: Callable[[Race], None], other: Callable[[Race], None]) -> Callable[[Race], None]:
    def call(race: Race) -> None:
        one(race)
        other(race)

    return call


def _make_sides(config: DemoConfig) -> tuple[Side, Side]:
    from rolltree.demo.process import SideProcess
    from rolltree.demo.training import Training

    return (
        SideProcess(Training(config, speculate=False, time_generate=config.compare_generate)),
        SideProcess(Training(config, speculate=True)),
    )


def _title(config: DemoConfig) -> str:
    return f"GRPO, 1M parameters: {config.prompts} prompts x {config.samples} samples, {config.slots} at a time"


def _check_installed(config: DemoConfig) -> None:
    needed = NEEDED + (("matplotlib",) if config.plot else ())
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        extras = 'pip install "rolltree[cli,trl,report]"'
        raise MissingDependencyError(f"The demo needs {', '.join(missing)}: {extras}")


@contextmanager
def _progress(config: DemoConfig, console: Console) -> Iterator[Callable[[Race], None]]:
    """A callback that moves a progress bar; does nothing when the console is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=config.epochs * config.steps_per_epoch)

        def on_batch(race: Race) -> None:
            bar.update(task, completed=race.batches, description=_state(race))

        yield on_batch


def _state(race: Race) -> str:
    done = race.finished()
    epoch = f"epoch {min(len(done) + 1, race.epochs)}/{race.epochs}"
    return epoch + (f"  reward {done[-1].reward:.2f}  {done[-1].speedup:.2f}x" if done else "")
