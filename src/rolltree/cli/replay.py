"""`rolltree replay`: what a drafter would have saved on recorded rollouts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rolltree import machine
from rolltree.cli.bar import Bar
from rolltree.cli.output import Json, Out, Plot, check_outputs, console, finish, table
from rolltree.errors import InvalidInputError

if TYPE_CHECKING:
    from rolltree.replay.reading import TraceReader
    from rolltree.replay.records import Selection
    from rolltree.replay.run import ReplayConfig

History = Annotated[list[Path] | None, typer.Option("--history", help="Rollouts known before; repeat it.")]
Names = Annotated[
    list[str] | None, typer.Option("--drafter", help="NAME[:OPTION=VALUE]...; repeat it, separate by commas, or all.")
]
Slots = Annotated[
    list[int] | None, typer.Option("--batch", min=0, help="Slots of the engine, 0: all; repeat it. Default: 32.")
]
Profile = Annotated[str, typer.Option(help="h100-7b, h100-1.5b, cpu-2core, or a file of a cost model.")]


Capacity = Annotated[str | None, typer.Option(metavar="BYTES", help="Of all trees, for example 512MiB. Default: 4GiB.")]
Store = Annotated[
    str | None, typer.Option(help="Evicted prompts come back: from stores in this new FOLDER, or temporary ones.")
]
StepFrom = Annotated[
    str | None, typer.Option(help="Where the step stands: FIELD, file, folder, or order: each file is a step.")
]
KeepEvaluation = Annotated[
    bool, typer.Option("--keep-evaluation", help="Replay evaluation rollouts of a training's log, too.")
]


def run(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recorded rollouts; a folder: all in it.")],
    history: History = None,
    drafter: Names = None,
    samples: Annotated[int | None, typer.Option(min=1, help="First samples of each prompt and step.")] = None,
    history_samples: Annotated[int | None, typer.Option(min=1, help="Of the history. Default: --samples.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Cut rollouts: without their long tail.")] = None,
    max_draft: Annotated[int, typer.Option(min=1, max=1024, help="Draft tokens of a request and step.")] = 16,
    shape: Annotated[str, typer.Option(help="chain or tree.")] = "chain",
    batch: Slots = None,
    cost: Profile = "h100-7b",
    budget: Annotated[bool, typer.Option(help="Weigh the cost of a step; without: verify all drafts.")] = True,
    learn_cost: Annotated[bool, typer.Option("--learn-cost", help="The budget learns what steps cost.")] = False,
    ceiling: Annotated[bool, typer.Option(help="Replay the oracle, too.")] = True,
    capacity: Capacity = None,
    store: Store = None,
    split: Annotated[str, typer.Option(help="all, or every second prompt: even or odd.")] = "all",
    seed: Annotated[int | None, typer.Option(help="Shuffle the order of prompts.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="For files that hold text.")] = None,
    skip_bad_lines: Annotated[bool, typer.Option("--skip-bad-lines", help="Leave out what cannot be read.")] = False,
    step_from: StepFrom = None,
    keep_evaluation: KeepEvaluation = False,
    plot: Plot = None,
    json_output: Json = False,
    out: Out = None,
) -> None:
    """Replay recorded rollouts as a batched engine would run them, with any drafter: no model, no GPU.

    Example: rolltree replay step800.jsonl.gz --history step400.jsonl.gz --drafter rolltree,ngram --batch 8 --batch 128
    """
    from rolltree.replay.drafters import Limits, parse_drafters
    from rolltree.replay.profiles import load_profile
    from rolltree.replay.records import Selection
    from rolltree.replay.run import ReplayConfig
    from rolltree.replay.stores import Stores

    memory = {} if capacity is None else {"capacity_bytes": _bytes("--capacity", capacity)}
    limits = Limits(max_draft=max_draft, shape=_choice("--shape", shape, "chain", "tree"), **memory)
    config = ReplayConfig(
        drafters=parse_drafters(drafter or ["rolltree"]), batches=batch or [32], profile=load_profile(cost),
        limits=limits, budget="off" if not budget else "learned" if learn_cost else "told", ceiling=ceiling,
        stores=None if store is None else Stores.at(store),
    )  # fmt: skip
    selection = Selection(
        samples=samples, history_samples=history_samples or samples, max_tokens=max_tokens,
        split=_choice("--split", split, "all", "even", "odd"), seed=seed,
    )  # fmt: skip
    check_outputs([*files, *(history or []), *_existing(cost, tokenizer)], out=out, plot=plot)
    screen = console(json_output)
    reader = _reader(tokenizer, skip_bad_lines=skip_bad_lines, step_from=step_from, keep_evaluation=keep_evaluation)
    document = _replay(screen, config, selection, reader, files, history or [])
    _show(screen, document)
    for line in reader.account.sentences(kept_evaluation=keep_evaluation):
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    if plot is not None:
        from rolltree.replay.figure import draw

        draw(document, plot)
    finish(document | {"plot": str(plot) if plot else None}, json_output=json_output, out=out)


def _existing(*names: str | None) -> list[Path]:
    """Options that may be files, where they are."""
    return [Path(name) for name in names if name and Path(name).exists()]


def _reader(tokenizer: str | None, **options: Any) -> TraceReader:
    from rolltree.replay.reading import TraceReader
    from rolltree.replay.tokenizing import TextTokenizer

    return TraceReader(TextTokenizer(tokenizer) if tokenizer else None, **options)


def _replay(
    screen: Console,
    config: ReplayConfig,
    selection: Selection,
    reader: TraceReader,
    files: list[Path],
    history: list[Path],
) -> dict[str, Any]:
    """Read, replay, and say what was read."""
    from rolltree.replay.run import replay

    earlier = reader.read(history) if history else []
    recording = selection.select(earlier, reader.read(files))
    with Bar(screen, config.passes * recording.tokens) as bar:
        document = replay(recording, config, bar)
    chosen = {
        "samples": selection.samples,
        "max_tokens": selection.max_tokens,
        "history_rollouts": recording.history_rollouts,
        "split": selection.split,
    }
    return document | reader.account.document() | chosen | {"machine": machine.describe(("numpy", "arctic-inference"))}


def _choice(name: str, value: str, *allowed: str) -> Any:
    if value not in allowed:
        raise InvalidInputError(name, value, f"one of {', '.join(allowed)}")
    return value


def _bytes(name: str, text: str) -> int:
    """A number of bytes, written as one or with KiB, MiB, GiB."""
    match = re.fullmatch(r"([0-9]{1,18})(?: ?([KMG])iB)?", text)
    if not match or not int(match[1]):
        raise InvalidInputError(name, text, "a whole number of bytes above 0, or of KiB, MiB, GiB, for example 512MiB")
    return int(match[1]) << 10 * ("KMG".index(match[2]) + 1 if match[2] else 0)


_CASES = {
    "drafter": "drafter",
    "batch": "slots",
    "tokens_per_step": "tok/step",
    "drafted_per_step": "drafted",
    "acceptance_rate": "rate",
    "ceiling_share": "ceiling",
    "generation_seconds": "seconds",
    "speedup": "speedup",
    "latency_p99_seconds": "p99 s",
    "expected_calibration_error": "ECE",
    "tree_bytes_per_token": "B/tok",
    "draft_microseconds_per_step": "µs",
}

_MEMORY = {
    "drafter": "drafter",
    "batch": "slots",
    "capacity_bytes": "capacity",
    "peak_tree_bytes": "peak",
    "evicted_prompts": "evicted",
    "rebuilt_prompts": "came back",
    "open_seconds": "open s",
    "store_bytes": "store bytes",
    "store_bytes_per_token": "B/tok",
}


def _show(screen: Console, document: dict[str, Any]) -> None:
    cases = document["cases"]
    rows = [[case["drafter"].replace(":", "\n  "), *[case.get(key) for key in list(_CASES)[1:]]] for case in cases]
    title = f"Replay of {document['tokens']:,} tokens, {document['rollouts']:,} rollouts, {document['cost_profile']}"
    screen.print(table(title, list(_CASES.values()), rows))
    kept = [case for case in cases if case["evicted_prompts"] or "store_bytes" in case]
    if kept:
        rows = [[case["drafter"], *[case.get(key) for key in list(_MEMORY)[1:]]] for case in kept]
        screen.print(table("Memory", list(_MEMORY.values()), rows))
    first = cases[0]
    if len(first["steps"]) > 1:
        keys = ["step", "tokens_per_step", "drafted_per_step", "acceptance_rate", "generation_seconds", "speedup"]
        steps = [[str(step[key]) if key == "step" else step[key] for key in keys] for step in first["steps"]]
        screen.print(table(f"{first['drafter']} by step", ["step", *keys[1:]], steps))
