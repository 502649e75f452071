"""The tables of docs/measured.md that were measured on a GPU, as `measured_tables` makes the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from measured_tables import footnote, table

SHOWN = {
    "none": "vLLM alone (V2, async)",
    "rolltree-v2-full-stream": "rolltree: graphs for all drafts, wait in the stream",
    "rolltree-v2-full": "the same, wait in the host",
    "rolltree-v2-full-coupled": "the same, `coupled`",
    "rolltree-v2-wide-stream": "FULL_AND_PIECEWISE graphs for all drafts, wait in the stream",
    "rolltree-v2-wide": "the same, wait in the host",
    "rolltree-v2-stream": "rolltree, wait in the stream",
    "rolltree-v2": "rolltree, wait in the host",
    "rolltree-v2-ragged": "the same, `lengths: ragged`",
    "rolltree-v2-coupled": "the same, `coupled`",
    "rolltree-v1": "rolltree in V1",
    "ngram": "n-gram",
    "suffix": "SuffixDecoding (V1)",
}
DEFAULTS = "rolltree-v2-full-stream"
"""What rolltree's defaults are since these runs, in gpu_vllm.json."""


def last_epoch(document: dict[str, Any], case: str, batch: int, temperature: float = 1.0) -> dict[str, Any]:
    """The last epoch of a case; empty where it was not run."""
    rows = [
        row for row in document.get("vllm", [])
        if not row["error"] and (row["case"], row["batch"], row["temperature"]) == (case, batch, temperature)
    ]  # fmt: skip
    return max(rows, key=lambda row: row["epoch"], default={})


def vllm_on_gpu(document: dict[str, Any]) -> str:
    """Engines whose graphs take all drafts."""
    title = "## vLLM on a GPU: graphs for all drafts\n\n"
    return title + _about(document) + _speeds(document) + _said(document) + footnote(document["machine"])


def vllm_own_graphs(document: dict[str, Any]) -> str:
    """Engines with vLLM's own graphs."""
    title = "## vLLM on a GPU: vLLM's own graphs\n\nThey end at 512 tokens: 64 requests with 8 drafts each have 576. "
    return title + _about(document) + _speeds(document) + _said(document) + footnote(document["machine"])


def _about(document: dict[str, Any]) -> str:
    rows = document["vllm"]
    model, device = rows[0]["model"], document["device"]
    epoch = max(row["epoch"] for row in rows if not row["error"])
    return (
        f'`make gpu-bench ARGS="--part vllm --together"`: real vLLM on an {device}, {document["dtype"]}, a model of\n'
        f"the shape `{model}` that says what the demo's model says, 8 rollouts of a prompt, K = 8, T = 1.\n"
        f"Epoch {epoch}, one run: median milliseconds between two decode steps, and speed over vLLM alone.\n\n"
    )


def _speeds(document: dict[str, Any]) -> str:
    batches = sorted({row["batch"] for row in document["vllm"] if not row["error"]})
    names = [name for name in SHOWN if any(row["case"] == name and not row["error"] for row in document["vllm"])]
    lines = []
    for name in names:
        found = [last_epoch(document, name, batch) for batch in batches]
        cells = [
            f"{row['step_milliseconds_median']:.1f} ms, **{row['speedup']:.2f}x**" if row else "-" for row in found
        ]
        lines.append((SHOWN[name], *cells, *_tokens(found[-1:])))
    return table(("", *[f"{batch} requests" for batch in batches], f"tokens/step at {batches[-1]}"), lines)


def _tokens(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{row['tokens_per_step']:.2f}" if row else "-" for row in rows]


def _said(document: dict[str, Any]) -> str:
    """How many texts were those of the plain engine, and who failed."""
    rows = [row for row in document["vllm"] if row.get("identical_rollouts") is not None and row["case"] != "none"]
    same, judged = (sum(row[key] for row in rows) for key in ("identical_rollouts", "rollouts"))
    failed = [row["case"] for row in document["vllm"] if row["error"]]
    text = (
        f"\nRollouts that can be compared (T = 0, and T = 1 with `coupled`): {same:,} of {judged:,} are vLLM's own.\n"
    )
    return text + (f"Did not run to the end: {', '.join(failed)} (docs/LOG.md).\n" if failed else "")


def engine_on_gpu(document: dict[str, Any]) -> str:
    """The built-in engine: exactness, speed, step costs."""
    lines = []
    for dtype, checks in document["exact"].items():
        for case in checks["demo"]:
            same = [f"{case[shape]['identical']} of {case['rollouts']}" for shape in ("chain", "tree", "other_batch")]
            lines.append((dtype, f"{case['temperature']:g}", *same))
    chances = [case["p_value"] for checks in document["exact"].values() for case in checks["distribution"]]
    title = (
        f"## The built-in engine on a GPU\n\nOn an {document['device']}: rollouts equal to those without drafts.\n\n"
    )
    text = title + table(("", "T", "chain", "tree", "half the batch, no drafts"), lines)
    text += f"\nDistribution: chi-square of 20,000 samples, {len(chances)} cases, p from {min(chances):.2f} to "
    text += f"{max(chances):.2f}.\nSpeed, {document['dtype']}, over the same engine without drafts:\n\n"
    speeds = [
        (c["batch"], c["epoch"], c["drafter"], f"{c['tokens_per_second']:,.0f}", f"{c['tokens_per_step']:.2f}",
         f"{c['speedup']:.2f}x")
        for c in document["cases"] if c["drafter"] != "generate"
    ]  # fmt: skip
    text += table(("slots", "epoch", "drafter", "tokens/s", "tokens/step", "speed-up"), speeds)
    for model, curve in document["curves"].items():
        points = {(p["rows"], p["draft"]): f"{p['seconds'] * 1e3:.1f}" for p in curve["points"]}
        drafts = sorted({draft for _, draft in points})
        steps = [
            (rows, *[points.get((rows, draft), "-") for draft in drafts])
            for rows in sorted({rows for rows, _ in points})
        ]
        text += f"\nMilliseconds of a step of `{model}`, by drafts a row (no CUDA graphs: launches are most of it):\n\n"
        text += table(("rows", *drafts), steps)
    return text + footnote(document["machine"])
