"""`rolltree bench runahead-replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rolltree.cli.output import Json, Out, check_outputs, console, finish, table
from rolltree.errors import InvalidInputError


def run(
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
    """Run-ahead in a simulated engine over recorded rollouts: a first epoch of prompts that are all new.

    Example: rolltree bench runahead-replay step800.jsonl.gz --history step400.jsonl.gz --cost h100-7b --shape 5x8
    """
    from rolltree.bench.runahead_replay import Shape, replay_run_ahead
    from rolltree.replay.profiles import load_profile
    from rolltree.replay.reading import Reader

    check_outputs([*files, *(history or [])], out=out)
    screen = console(json_output)
    profiles = [load_profile(name) for name in cost or ["h100-7b", "h100-1.5b", "cpu-2core"]]
    shapes = [Shape(**_sizes(text)) for text in shape or ["2x8", "5x8", "10x8"]]
    with screen.status("") as status:
        reader = Reader()
        earlier = reader.read(history) if history else []
        document = replay_run_ahead(reader.read(files), earlier, profiles, shapes, seeds=seeds, progress=status.update)
    for line in reader.account.sentences():
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    document["read"] = reader.account.document()
    cases: Any = document["cases"]
    keys = ["mode", "seconds", "speedup_over_cold", "tokens_per_step"]
    more = ["slack_used", "tail_cost_share", "ahead_tokens"]
    rows = [
        [f"{c['profile']}, {c['prompts']}x{c['samples']}", *[c[k] for k in keys], *[c.get(k) for k in more]]
        for c in cases
    ]
    columns = [
        "profile, shape",
        "mode",
        "seconds",
        "over cold",
        "tokens/step",
        "slack used",
        "tail cost",
        "ahead tokens",
    ]
    screen.print(table("Run-ahead, simulated: a first epoch", columns, rows))
    finish(document, json_output=json_output, out=out)


def _sizes(text: str) -> dict[str, int]:
    prompts, _, samples = text.partition("x")
    if not (prompts.isdigit() and samples.isdigit() and int(prompts) and int(samples)):
        raise InvalidInputError("--shape", text, "PROMPTSxSAMPLES, for example 5x8")
    return {"prompts": int(prompts), "samples": int(samples)}
