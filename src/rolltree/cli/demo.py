"""`rolltree demo`: a real GRPO run on this computer, with and without."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rolltree.cli.output import Json, Out, check_figure, check_folder, check_outputs, console, finish
from rolltree.errors import InvalidInputError


def run(
    model: Annotated[
        str, typer.Option(hidden=True, help="built-in; SmolLM2's rollouts are `make smollm2`.")
    ] = "built-in",
    quick: Annotated[
        bool, typer.Option("--quick", help="Two epochs over a few prompts: seconds, no conclusions.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the same prompts.")] = None,
    slots: Annotated[int | None, typer.Option(help="Completions decoded together.")] = None,
    max_draft: Annotated[int | None, typer.Option(help="Draft tokens per completion and forward pass.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    compare_generate: Annotated[bool, typer.Option(help="Time the trainer's own generate beside the two runs.")] = True,
    plot: Annotated[
        Path, typer.Option(callback=lambda path: check_figure(path), help="Where the figure goes: .png, .svg or .pdf.")
    ] = Path("rolltree-demo.png"),
    run_dir: Annotated[
        Path | None,
        typer.Option(
            callback=lambda path: path and check_folder(path, "--run-dir"),
            help="Folder for metrics, for `rolltree report`.",
        ),
    ] = None,
    json_output: Json = False,
    out: Out = None,
) -> None:
    """Run GRPO on a small reasoning task twice, plainly and with rolltree, and compare.

    The two runs must end with the same rewards and bit-identical weights; exit code 1 when they do not.

    Example: rolltree demo --epochs 3
    """
    from rolltree import demo
    from rolltree.demo.config import DemoConfig

    if model != "built-in":
        raise InvalidInputError("demo.model", model, "built-in", "SmolLM2 is an example, in a checkout: make smollm2.")
    check_outputs([], out=out, plot=plot)
    given = {"epochs": epochs, "slots": slots, "max_draft": max_draft, "seed": seed}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    changes |= {"compare_generate": compare_generate, "plot": plot, "run_dir": run_dir}
    config = DemoConfig.quick(**changes) if quick else DemoConfig(**changes)
    screen = console(json_output)
    document = demo.run(config, screen)
    screen.print(demo.render(document))
    finish(document, json_output=json_output, out=out)
    if not demo.passed(document):
        raise typer.Exit(1)
