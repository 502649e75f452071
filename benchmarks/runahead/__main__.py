"""`python -m benchmarks.runahead run` and `replay`: options and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rolltree.cli.app import main
from rolltree.cli.output import Json, Out, check_outputs, console, finish, table
from rolltree.errors import InvalidInputError

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def run(
    slots: Annotated[list[int] | None, typer.Option("--slots", min=8, help="Rows of the engine; repeat it.")] = None,
    tail: Annotated[list[str] | None, typer.Option("--tail", help="natural or long; repeat it.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Training steps, each with new prompts.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions with fresh caches.")] = 3,
    train_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of GRPO before; the policy then drifts as in that training.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    json_output: Json = False,
    out: Out = None,
) -> None:
    """Seconds of a first epoch with run-ahead and without, on the demo's model.

    Example: python -m benchmarks.runahead run --slots 16 --tail long --steps 6
    """
    import torch

    from benchmarks.runahead.engine import Regime, run_ahead
    from benchmarks.runahead.policy import demo_policy

    torch.set_num_threads(threads)
    tails: list[Any] = list(tail or ["natural", "long"])
    if set(tails) - {"natural", "long"}:
        raise InvalidInputError("--tail", tails, "natural or long")
    regimes = [Regime(slots=n, tail=name) for n in slots or [8, 32, 64] for name in tails]
    screen = console(json_output)
    with screen.status("training" if train_epochs else "") as status:
        policy = demo_policy(train_epochs=train_epochs)
        document = run_ahead(policy, regimes, steps=steps, repeats=repeats, progress=status.update)
    keys = ["slots", "tail", "mode", "seconds", "speedup_over_cold", "first_step_slowdown", "tokens_per_step"]
    screen.print(_table(document, [*keys, "slack_used", "tokens"]))
    finish(document, json_output=json_output, out=out)


@app.command()
def replay(
    files: Annotated[list[Path], typer.Argument(help="Recorded rollouts of one checkpoint; see docs/replay.md.")],
    history: Annotated[
        list[Path] | None, typer.Option("--history", help="The same prompts by an earlier checkpoint.")
    ] = None,
    cost: Annotated[list[str] | None, typer.Option("--cost", help="Cost profile, or a file; repeat it.")] = None,
    shape: Annotated[
        list[str] | None, typer.Option("--shape", help="PROMPTSxSAMPLES of a training step; repeat it.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Orders of the prompts.")] = 3,
    json_output: Json = False,
    out: Out = None,
) -> None:
    """The same in a simulated engine over recorded rollouts.

    Example: python -m benchmarks.runahead replay step800.jsonl.gz --history step400.jsonl.gz --shape 5x8
    """
    from benchmarks.runahead.replay import Shape, replay_run_ahead
    from rolltree.replay.profiles import load_profile
    from rolltree.replay.reading import TraceReader

    check_outputs([*files, *(history or [])], out=out)
    screen, reader = console(json_output), TraceReader()
    profiles = [load_profile(name) for name in cost or ["h100-7b", "h100-1.5b", "cpu-2core"]]
    shapes = [Shape(**_sizes(text)) for text in shape or ["2x8", "5x8", "10x8"]]
    with screen.status("") as status:
        earlier = reader.read(history) if history else []
        document = replay_run_ahead(reader.read(files), earlier, profiles, shapes, seeds=seeds, progress=status.update)
    for line in reader.account.sentences():
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    document["read"] = reader.account.document()
    keys = ["profile", "prompts", "samples", "mode", "seconds", "speedup_over_cold", "tokens_per_step"]
    screen.print(_table(document, [*keys, "slack_used", "tail_cost_share", "ahead_tokens"]))
    finish(document, json_output=json_output, out=out)


def _sizes(text: str) -> dict[str, int]:
    prompts, _, samples = text.partition("x")
    if not (prompts.isdigit() and samples.isdigit() and int(prompts) and int(samples)):
        raise InvalidInputError("--shape", text, "PROMPTSxSAMPLES, for example 5x8")
    return {"prompts": int(prompts), "samples": int(samples)}


def _table(document: dict[str, Any], keys: list[str]) -> Any:
    rows = [[case.get(key) for key in keys] for case in document["cases"]]
    return table("Run-ahead: a first epoch", [key.replace("_", " ") for key in keys], rows)


if __name__ == "__main__":
    main(app)
