"""`rolltree bench gpu`: one command for all that is to be measured on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rolltree.cli.output import console, finish, table

FULL: dict[str, Any] = {
    "model": ["demo", "smollm2-135m", "dummy-1.5b", "dummy-7b"],
    "batch": [1, 8, 32, 128, 256, 512],
    "draft": [4, 8, 16],
}
QUICK: dict[str, Any] = {"model": ["tiny"], "batch": [1, 4], "draft": [4]}


def run(
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("gpu-bench"),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    model: Annotated[list[str] | None, typer.Option("--model", help="Repeat it; see docs/gpu.md.")] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Requests at once; repeat it.")] = None,
    draft: Annotated[list[int] | None, typer.Option("--max-draft", min=1, help="K; repeat it.")] = None,
    drafter: Annotated[list[str] | None, typer.Option("--drafter", help="Repeat it. Default: all.")] = None,
    part: Annotated[
        list[str] | None, typer.Option("--part", help="curves, forced, real, exact, profile. Default: all.")
    ] = None,
    traces: Annotated[
        list[str] | None, typer.Option("--traces", help="NAME=EARLIER,LATER: trace files of the same prompts.")
    ] = None,
    length: Annotated[int, typer.Option(min=8, help="Tokens of a made-up rollout, where no traces are given.")] = 512,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of real text.")] = 4,
    train_epochs: Annotated[int, typer.Option(min=0, help="Epochs of GRPO on the demo's model before.")] = 0,
    exact_samples: Annotated[int, typer.Option(min=100, help="Samples of the chi-square test.")] = 20_000,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the engine's sampler.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny shapes: does everything work here?")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line.")] = False,
) -> None:
    """Step costs, rollout speed, exactness, host share and a profile of the built-in engine on a device.

    Exit code 1 when a check of exactness fails. Minutes on a GPU; docs/gpu.md says how to run it without a network.

    Example: rolltree bench gpu --device cpu --dtype float32 --quick --out /tmp/gpu
    """
    from rolltree.bench.gpu_forced import DRAFTERS
    from rolltree.bench.gpu_shapes import check_device
    from rolltree.bench.matrix import PARTS, Matrix, run_matrix
    from rolltree.bench.subjects import peer_installed
    from rolltree.cli.bench import _data

    check_device(device)
    chosen = QUICK if quick else FULL
    names = drafter or list(DRAFTERS)
    data = _data(traces, 4 if quick else 64, 64 if quick else length)
    matrix = Matrix(
        out=out, device=device, dtype=dtype, models=model or chosen["model"], batches=batch or chosen["batch"],
        drafts=draft or chosen["draft"], drafters=[n for n in names if n != "suffix" or drafter or peer_installed()],
        data=data if not traces else {name: groups for name, groups in data.items() if name != "markov"},
        epochs=epochs, train_epochs=train_epochs, exact_samples=min(exact_samples, 2000) if quick else exact_samples,
        parts=part or PARTS, compile=compile,
    )  # fmt: skip
    screen = console(json_output)
    with screen.status("") as status:
        document = run_matrix(matrix, status.update)
    _show(screen, document)
    finish(document, json_output=json_output, out=None)
    if not exact(document, float32=dtype == "float32"):
        raise typer.Exit(1)


def exact(document: dict[str, Any], *, float32: bool) -> bool:
    """Whether every check held: the distribution always, identical rollouts in float32 (16 bits: reported only)."""
    checks = dict(document["exact"])
    good = all(case["exact"] for case in checks.pop("distribution", []))
    pairs = [(c["rollouts"], c[shape]["identical"]) for found in checks.values() for c in found for shape in _SHAPES]
    return good and (not float32 or all(rollouts == same for rollouts, same in pairs))


_SHAPES = ("chain", "tree")


def _show(screen: Any, document: dict[str, Any]) -> None:
    for name, curve in document["curves"].items():
        rows = [[p["rows"], p["draft"], p["tokens"], p["seconds"] * 1e3] for p in curve["points"]]
        screen.print(table(f"{name} on {document['device']}: a verify step", ["rows", "draft", "tokens", "ms"], rows))
    keys = ["part", "data", "batch", "max_draft", "drafter", "tokens_per_second", "tokens_per_step", "speedup"]
    rows = [[case["model"], *[case.get(key) for key in keys]] for case in document["cases"]]
    if rows:
        screen.print(table("Rollouts", ["model", *keys], rows))
    columns = ["model", "drafter", "max_draft", "batch", "host_share", "host_microseconds_per_step"]
    rows = [[case[key] for key in columns] for case in document["host_share"]]
    if rows:
        screen.print(table("Drafting and update in a step", columns, rows))
    for case in document["exact"].get("distribution", []):
        screen.print(
            f"{case['rule']}, {case['shape']}: chi-square p = {case['p_value']:.3g} of {case['samples']} samples"
        )
    for name, found in document["exact"].items():
        for c in found if name != "distribution" else []:
            text = ", ".join(f"{s} {c[s]['identical']}" for s in (*_SHAPES, "other_batch"))
            screen.print(f"{name}, T = {c['temperature']:g}: identical of {c['rollouts']}: {text}")
