"""`rolltree bench index|draft|engine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rolltree.cli.output import Json, Out, check_file, check_outputs, console, finish, table
from rolltree.errors import InvalidInputError

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
    """Time to draft and to take in what was emitted, by live requests; of a step as one native call; the longest calls.

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
    finish(document, json_output=json_output, out=out)


@app.command(name="engine")
def run_engine_command(
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Slots of the engine; repeat it.")] = None,
    drafter: Annotated[
        list[str] | None, typer.Option("--drafter", help="What to run; repeat it. Default: all.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times that every prompt is generated.")] = 6,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions with fresh caches.")] = 3,
    rollouts: Annotated[int, typer.Option(min=1, help="Rollouts of an epoch.")] = 64,
    train_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of GRPO before; their rollouts warm the caches.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    max_draft: Annotated[int, typer.Option(min=1, help="Draft tokens of a request and step at most.")] = 16,
    cost: Annotated[Path | None, typer.Option(help="A frozen cost model instead of a measured one.")] = None,
    save_cost: Annotated[
        Path | None,
        typer.Option(
            callback=lambda path: path and check_file(path, "--save-cost"),
            help="Where the cost model measured at the largest batch goes, for --cost, also of `replay`.",
        ),
    ] = None,
    engine: Annotated[str, typer.Option(hidden=True, help="builtin; vLLM's is `make vllm-bench`.")] = "builtin",
    json_output: Json = False,
    out: Out = None,
) -> None:
    """Rollout seconds over epochs with every drafter and stock generate, on the demo's model.

    Example: rolltree bench engine --batch 8 --batch 64 --epochs 4
    """
    import torch

    from rolltree.bench.demo_workload import demo_workload
    from rolltree.bench.device import moved
    from rolltree.bench.engine import DRAFTERS, run_engine
    from rolltree.bench.subjects import peer_installed
    from rolltree.budget import CostModel

    check_outputs([cost] if cost else [], out=out, save_cost=save_cost)
    torch.set_num_threads(threads)
    screen = console(json_output)
    if engine != "builtin":
        raise InvalidInputError("--engine", engine, "builtin", "vLLM is measured in a checkout: make vllm-bench.")
    names = drafter or [name for name in DRAFTERS if name != "suffix" or peer_installed()]
    with screen.status("training" if train_epochs else "") as status:
        workload = moved(demo_workload(train_epochs=train_epochs), device, dtype)
        document = run_engine(
            workload, batches=batch or [8, 32, 64], drafters=names, epochs=epochs, repeats=repeats, rollouts=rollouts,
            max_draft=max_draft, cost=CostModel.load(cost) if cost else None, progress=status.update,
        )  # fmt: skip
    costs: Any = document.get("costs")
    if save_cost is not None and costs:
        CostModel(**costs[max(costs, key=int)]).save(save_cost)
    show_cases(screen, document)
    finish(document, json_output=json_output, out=out)


def show_cases(screen: Any, document: dict[str, Any]) -> None:
    """Print the table of `bench engine`: a row for each batch size, epoch and drafter."""
    cases = document["cases"]
    keys = ["epoch", "drafter", "tokens_per_second", "tokens_per_step", "drafted_per_step", "speedup"]
    rows = [[f"batch {c['batch']}", *[c[k] for k in keys], "{:.2f}-{:.2f}".format(*c["spread"])] for c in cases]
    columns = ["batch", "epoch", "drafter", "tokens/s", "tokens/step", "drafted/step", "speedup", "spread"]
    screen.print(table("Engine: speedup over the same engine without drafts", columns, rows))
