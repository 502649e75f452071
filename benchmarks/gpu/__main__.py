"""`python -m benchmarks.gpu`: one command for all that is to be measured on a device: options, tables, verdict."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu.vllm_table import is_exact, table_rows
from rolltree.bench.subjects import peer_installed
from rolltree.cli.app import main
from rolltree.cli.output import Json, check_folder, console, finish, table

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
FULL: dict[str, Any] = {
    "model": ["demo", "smollm2-135m", "dummy-1.5b", "dummy-7b"],
    "batch": [1, 8, 32, 128, 256, 512],
    "draft": [4, 8, 16],
    "epochs": 4,
    "vllm_batch": [1, 8, 64, 256],
}
QUICK: dict[str, Any] = {
    "model": ["tiny", "demo"], "batch": [1, 4], "draft": [4], "epochs": 2, "vllm_batch": [1, 4],
}  # fmt: skip
SMALL: dict[str, Any] = {
    "samples": 4, "prompts": 4, "ahead_steps": 2, "ahead_repeats": 1, "ahead_tails": ["natural"], "vllm_tokens": 32,
}  # fmt: skip
"""Sizes of --quick."""


@app.command()
def run(
    out: Annotated[
        Path,
        typer.Option("--out", callback=lambda path: check_folder(path, "--out"), help="Folder for the results."),
    ] = Path("gpu-bench"),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    model: Annotated[list[str] | None, typer.Option("--model", help="Repeat it; see docs/gpu.md.")] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Requests at once; repeat it.")] = None,
    draft: Annotated[list[int] | None, typer.Option("--max-draft", min=1, help="K; repeat it.")] = None,
    drafter: Annotated[list[str] | None, typer.Option("--drafter", help="Repeat it. Default: all.")] = None,
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="curves, forced, real, exact, profile, vllm, grpo, runahead. Default: all."),
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option("--case", help="Of --part vllm, see docs/gpu.md; repeat it. Default: all.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Of --part vllm: start all engines at once, measure one by one.")
    ] = False,
    traces: Annotated[
        list[str] | None, typer.Option("--traces", help="NAME=EARLIER,LATER: trace files of the same prompts.")
    ] = None,
    length: Annotated[int, typer.Option(min=8, help="Tokens of a made-up rollout, where no traces are given.")] = 512,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of real text and of GRPO. Default: 4; with --quick 2.")
    ] = None,
    train_epochs: Annotated[int, typer.Option(min=0, help="Epochs of GRPO on the demo's model before `real`.")] = 0,
    exact_samples: Annotated[int, typer.Option(min=100, help="Samples of the chi-square test.")] = 20_000,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the engine's sampler.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny shapes: does everything work here?")] = False,
    json_output: Json = False,
) -> None:
    """Step costs, rollout speed, exactness, host share, a profile, vLLM, GRPO end to end and run-ahead on a device.

    Exit code 1 when a check of exactness fails. Minutes on a GPU; docs/gpu.md says how to run it without a network.

    Example: python -m benchmarks.gpu --device cpu --dtype float32 --quick --out /tmp/gpu
    """
    from benchmarks.gpu.forced import DRAFTERS
    from benchmarks.gpu.matrix import PARTS, Matrix, run_matrix
    from benchmarks.gpu.needs import vllm_installed
    from benchmarks.gpu.vllm_cases import CASES
    from benchmarks.gpu.vllm_cases import QUICK as QUICK_CASES
    from rolltree.bench.device import check_device
    from rolltree.bench.workload import load_data

    check_device(device)
    chosen = QUICK if quick else FULL
    names = drafter or list(DRAFTERS)
    data = load_data(traces or [], 4 if quick else 64, 64 if quick else length)
    matrix = Matrix(
        out=out, device=device, dtype=dtype, models=model or chosen["model"], batches=batch or chosen["batch"],
        drafts=draft or chosen["draft"], drafters=[n for n in names if n != "suffix" or drafter or peer_installed()],
        data=data if not traces else {name: groups for name, groups in data.items() if name != "markov"},
        epochs=epochs or chosen["epochs"], train_epochs=train_epochs,
        exact_samples=min(exact_samples, 2000) if quick else exact_samples,
        parts=part or [p for p in PARTS if p != "vllm" or vllm_installed()], compile=compile,
        vllm_cases=case or (QUICK_CASES if quick else _installed(CASES)),
        vllm_together=together, vllm_batches=batch or chosen["vllm_batch"], **(SMALL if quick else {}),
    )  # fmt: skip
    screen = console(json_output)
    with screen.status("") as status:
        document = run_matrix(matrix, status.update)
    _show(screen, document)
    finish(document, json_output=json_output, out=None)
    if not exact(document, float32=dtype == "float32"):
        raise typer.Exit(1)


def _installed(known: Iterable[str]) -> list[str]:
    """All that are installed."""
    return [name for name in known if name != "suffix" or peer_installed()]


def exact(document: dict[str, Any], *, float32: bool) -> bool:
    """Whether every check held: the distribution always; in float32 identical rollouts and, after GRPO, weights (16
    bits: reported only).
    """
    checks = dict(document["exact"])
    good = all(case["exact"] for case in checks.pop("distribution", []))
    pairs = [(c["rollouts"], c[shape]["identical"]) for found in checks.values() for c in found for shape in _SHAPES]
    trained = [run for found in document["grpo"].values() for run in found["runs"]]
    pairs += [(run["rollouts"], run["identical_rollouts"]) for run in trained]
    same_weights = all(run["identical_weights"] for run in trained) and is_exact(document["vllm"])
    return good and (not float32 or (same_weights and all(rollouts == same for rollouts, same in pairs)))


_SHAPES = ("chain", "tree")


def _show(screen: Any, document: dict[str, Any]) -> None:
    for name, curve in document["curves"].items():
        rows = [[p["rows"], p["draft"], p["tokens"], p["seconds"] * 1e3] for p in curve["points"]]
        screen.print(table(f"{name} on {document['device']}: a verify step", ["rows", "draft", "tokens", "ms"], rows))
    keys = ["part", "data", "batch", "max_draft", "drafter", "epoch", "tokens_per_second", "tokens_per_step", "speedup"]
    rows = [[case["model"], *[case.get(key) for key in keys]] for case in document["cases"]]
    if rows:
        labels = ["model", *keys[:3], "K", *keys[4:6], "tokens/s", "tokens/step", "speedup"]
        screen.print(table("Rollouts", labels, rows))
    _show_vllm(screen, document)
    _show_training(screen, document)
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


def _show_vllm(screen: Any, document: dict[str, Any]) -> None:
    columns, rows = table_rows(document["vllm"])
    if rows:
        screen.print(table("vLLM: decode steps and rollouts", columns, rows))
    for row in document["vllm"]:
        if row["error"]:
            screen.print(f"{row['model']}, {row['case']} failed: {row['error']}", markup=False)


def _show_training(screen: Any, document: dict[str, Any]) -> None:
    """GRPO end to end, and run-ahead."""
    keys = ["drafter", "seconds", "speedup", "speedup_over_suffix", "step_seconds", "step_speedup", "tokens_per_step"]
    labels = ["drafter", "rollouts s", "x", "over suffix", "steps s", "x", "tokens/step", "identical", "weights"]
    for name, found in document["grpo"].items():
        rows = [
            [
                *[run[key] for key in keys],
                f"{run['identical_rollouts']}/{run['rollouts']}",
                _SAME[run["identical_weights"]],
            ]
            for run in found["runs"]
        ]
        title = f"{name}: GRPO, {found['settings']['epochs']} epochs of {found['task']}"
        screen.print(table(title, labels, rows))
    keys = ["model", "slots", "tail", "mode", "seconds", "speedup_over_cold", "first_step_slowdown", "slack_used"]
    labels = [*keys[:4], "s/step", "over cold", "first step", "slack used"]
    rows = [[case.get(key) for key in keys] for case in document["runahead"]]
    if rows:
        screen.print(table("Run-ahead: a first epoch", labels, rows))


_SAME = {True: "identical", False: "differ"}

if __name__ == "__main__":
    main(app)
