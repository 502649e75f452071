"""`rolltree bench index|draft|engine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rolltree.cli import bench_engine
from rolltree.cli.output import Json, Out, check_outputs, console, finish, table

app = typer.Typer(help="Measure speed and memory.", no_args_is_help=True)

Traces = Annotated[
    list[str] | None, typer.Option("--traces", help="NAME=EARLIER,LATER: trace files of the same prompts.")
]


def _files(traces: list[str] | None) -> list[Path]:
    return [Path(name) for spec in traces or [] for name in spec.partition("=")[2].split(",") if name]


@app.command()
def index(
    traces: Traces = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each case.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Lock steps of each case.")] = 256,
    length: Annotated[int, typer.Option(min=8, help="Tokens of a Markov rollout.")] = 1000,
    json_output: Json = False,
    out: Out = None,
) -> None:
    """Append speed, memory and draft latency of the tree; the peer beside it when installed.

    Example: rolltree bench index --json
    """
    from rolltree.bench.index import run_index
    from rolltree.bench.workload import load_data

    check_outputs(_files(traces), out=out)
    screen = console(json_output)
    data = load_data(traces or [], 32, length)
    with screen.status("") as status:
        document = run_index(data, repeats=repeats, steps=steps, progress=status.update)
    cases: Any = document["cases"]
    rows = []
    for case in cases:
        peer, ratio, ours = case["peer"] or {}, case["ratio"] or {}, case["rolltree"]
        cells: list[object] = [f"{case['case']}, {case['live_requests']} live"]
        for key, short, scale in (
            ("append_tokens_per_second", "append", 1e-6),
            ("bytes_per_token", "bytes", 1),
            ("draft_microseconds", "draft", 1),
        ):
            cells += [_scaled(ours.get(key), scale), _scaled(peer.get(key), scale), ratio.get(short)]
        rows.append(cells)
    columns = ["case", "Mtok/s", "peer", "x", "B/token", "peer", "x", "draft µs", "peer", "x"]
    screen.print(table("Index: rolltree and arctic-inference", columns, rows))
    finish(document, json_output=json_output, out=out)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


@app.command()
def draft(
    traces: Traces = None,
    steps: Annotated[int, typer.Option(min=1, help="Draft calls of each case.")] = 100,
    long: Annotated[
        list[int] | None,
        typer.Option(
            "--long", min=64, help="Rollout length, tokens, whose pauses to measure; repeat it. Default: 8192, 32768."
        ),
    ] = None,
    json_output: Json = False,
    out: Out = None,
) -> None:
    """Time to draft and to take in what was emitted, by live requests, and of a step as one native call; the longest
    calls of a full cache, and of one whose trees come back from a store.

    Example: rolltree bench draft
    """
    from rolltree.bench.draft import run_draft
    from rolltree.bench.workload import load_data

    check_outputs(_files(traces), out=out)
    screen = console(json_output)
    data = load_data(traces or [], 128, 400)
    with screen.status("") as status:
        document = run_draft(data, steps=steps, long=long or (8192, 32768), progress=status.update)
    cases: Any = document["cases"]
    keys = [
        "shape", "live_requests", "threads", "microseconds_per_request", "batch_milliseconds_p50",
        "batch_milliseconds_p99", "update_microseconds_per_token", "drafted_per_request",
    ]  # fmt: skip
    rows = [[case["case"], *[case[key] for key in keys]] for case in cases]
    columns = ["data", "shape", "live", "threads", "µs/request", "batch ms p50", "p99", "update µs", "nodes/request"]
    screen.print(table("Drafting a batch", columns, rows))
    keys = ["rows", "threads", "step_milliseconds_p50", "step_milliseconds_p99", "drafted_per_request"]
    native: Any = document["steps"]
    rows = [[case["case"], *[case[key] for key in keys]] for case in native]
    columns = ["data", "rows", "threads", "ms p50", "p99", "drafts/row"]
    screen.print(table("A whole step as one native call, chain of 16", columns, rows))
    pauses: Any = document["pauses"]
    rows = [
        [case["case"], case["live_requests"], call, *times.values(), case["rss_over_bytes"]]
        for case in pauses
        for call, times in case["milliseconds"].items()
    ]
    columns = ["rollouts", "live", "call", "ms p50", "p99", "max", "RSS / bytes"]
    screen.print(table("Single calls of a full cache", columns, rows))
    rebuild: Any = document["rebuild"]
    rows = [[when, call, *ms.values()] for when, calls in rebuild["milliseconds"].items() for call, ms in calls.items()]
    title = f"Calls while trees come back, {rebuild['tokens_per_second'] / 1e6:.2f} Mtok/s from store to tree"
    screen.print(table(title, ["rebuilding", "call", "ms p50", "p99", "max"], rows))
    finish(document, json_output=json_output, out=out)


app.command(name="engine", help=bench_engine.run.__doc__)(bench_engine.run)
