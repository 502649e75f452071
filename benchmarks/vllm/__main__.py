"""`python -m benchmarks.vllm`: the options, the table and the JSON document of `make vllm-bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rolltree.cli.app import main
from rolltree.cli.bench_engine import show_cases
from rolltree.cli.output import Json, Out, check_outputs, console, finish

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def run(
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Requests at once; repeat it.")] = None,
    drafter: Annotated[list[str] | None, typer.Option("--drafter", help="Repeat it. Default: all.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times that every prompt is generated.")] = 6,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions with fresh engines.")] = 3,
    rollouts: Annotated[int, typer.Option(min=1, help="Rollouts of an epoch.")] = 64,
    train_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of GRPO before; their rollouts warm the caches.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    max_draft: Annotated[int, typer.Option(min=1, help="Draft tokens of a request and step at most.")] = 16,
    cost: Annotated[Path | None, typer.Option(help="A frozen cost model instead of a learned one.")] = None,
    json_output: Json = False,
    out: Out = None,
) -> None:
    """Rollout seconds of real vLLM over epochs with every way of drafting, on the demo's model.

    Example: python -m benchmarks.vllm --batch 32 --epochs 3
    """
    import torch

    from benchmarks.vllm.run import run_vllm
    from rolltree.bench.demo_workload import demo_workload
    from rolltree.bench.subjects import peer_installed
    from rolltree.bench.vllm_worker import DRAFTERS

    check_outputs([cost] if cost else [], out=out)
    torch.set_num_threads(threads)
    names = drafter or [name for name in DRAFTERS if name != "suffix" or peer_installed()]
    screen = console(json_output)
    with screen.status("training" if train_epochs else "") as status:
        document = run_vllm(
            demo_workload(train_epochs=train_epochs), batches=batch or [8, 32, 64], drafters=names, epochs=epochs,
            repeats=repeats, rollouts=rollouts, max_draft=max_draft, threads=threads,
            options={"cost": str(cost)} if cost else {}, progress=status.update,
        )  # fmt: skip
    show_cases(screen, document)
    finish(document, json_output=json_output, out=out)


if __name__ == "__main__":
    main(app)
