"""Writes what was measured, from benchmarks/*.json: the table of README.md and docs/measured.md.

No number there is typed by hand. What a document does not hold (a batch size that was not run) is left out.

Usage: python scripts/measured.py [--check]   (--check: exit 1 when one of the two pages is not up to date)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured_gpu import DEFAULTS, engine_on_gpu, last_epoch, vllm_on_gpu, vllm_own_graphs
from measured_tables import (
    QUALITY,
    REPLAYS,
    demo,
    drafting,
    engine,
    index,
    replay_quality,
    replay_times,
    sharing,
    table,
    verl,
    vllm,
)

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- begin measured -->\n", "<!-- end measured -->\n"


def main() -> int:
    """Rewrite, or check, the parts of both pages between the marks."""
    wrong = 0
    for page, sections in (("README.md", _summary()), ("docs/measured.md", _sections())):
        path = ROOT / page
        before, rest = path.read_text().split(BEGIN)
        text = before + BEGIN + "\n".join(sections) + END + rest.split(END)[1]
        wrong += text != path.read_text()
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
    return int(wrong > 0 and "--check" in sys.argv[1:])


def _document(name: str) -> dict[str, Any]:
    path = ROOT / "benchmarks" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _summary() -> Iterator[str]:
    """README's table: a row a question, ten at most."""
    cold, full = "epoch {epoch} from nothing, {batch} slots", "full cache, {batch} slots"
    rows = [
        _trained("demo", "built-in engine, CPU"),
        *[_raced("engine_cold", 32, epoch, cold) for epoch in (1, 4)],
        _raced("engine_warm", 8, 1, full),
        _raced("vllm", 32, 3, cold, "vLLM, CPU build"),
        _trained("verl_demo", "verl with vLLM, CPU"),
        *[_on_gpu(batch) for batch in (64, 256)],
        *[_simulated(*case) for case in (("aime24", 32), ("cognition", 512))],
    ]
    columns = ("generating rollouts", "where", "rolltree", "SuffixDecoding", "tokens/step")
    yield table(columns, [row for row in rows if row])


def _trained(name: str, where: str) -> tuple[str, ...]:
    epochs = _document(name).get("epochs")
    return (f"a GRPO training, epoch {epochs[-1]['epoch']}", where, *_speeds(epochs[-1])) if epochs else ()


def _speeds(case: dict[str, Any], peer: dict[str, Any] | None = None) -> tuple[str, ...]:
    theirs = f"{peer['speedup']:.2f}x" if peer else "-"
    return f"**{case['speedup']:.2f}x**", theirs, f"{case['tokens_per_step']:.2f}"


def _raced(name: str, batch: int, epoch: int, title: str, where: str = "built-in engine, CPU") -> tuple[str, ...]:
    cases = {c["drafter"]: c for c in _document(name).get("cases", []) if (c["batch"], c["epoch"]) == (batch, epoch)}
    shown = title.format(epoch=epoch, batch=batch)
    return (shown, where, *_speeds(cases["rolltree"], cases.get("suffix"))) if "rolltree" in cases else ()


def _on_gpu(batch: int) -> tuple[str, ...]:
    document = _document("gpu_vllm")
    found = last_epoch(document, DEFAULTS, batch)
    if not found:
        return ()
    title = f"epoch {found['epoch']} from nothing, {batch} slots, 1.5B"
    return (title, f"vLLM on an {document['device'].removeprefix('NVIDIA ')}", *_speeds(found))


def _simulated(name: str, slots: int) -> tuple[str, ...]:
    document = _document(f"replay_{name}")
    cases = [case for case in document.get("cases", []) if case["batch"] == slots]
    ours = [case for case in cases if case["drafter"] == "rolltree"]
    peers = [case for case in cases if case["drafter"].startswith("suffix")]
    where = f"replay on {document['cost_profile']}" if ours else ""
    best = max(peers, key=lambda case: case["speedup"], default=None)
    return (f"{REPLAYS[name]}, {slots} slots", where, *_speeds(ours[0], best)) if ours else ()


def _sections() -> Iterator[str]:
    sections = (
        ("demo", demo), ("engine_warm", engine), ("engine_cold", engine), ("vllm", vllm), ("verl_demo", verl),
        ("gpu_vllm", vllm_on_gpu), ("gpu_vllm_own_graphs", vllm_own_graphs), ("gpu_engine", engine_on_gpu),
        ("sharing", sharing), ("index", index), ("draft", drafting),
    )  # fmt: skip
    yield from (section(document) for name, section in sections if (document := _document(name)))
    yield from _replays()


def _replays() -> Iterator[str]:
    for titles, section in ((REPLAYS, replay_times), (QUALITY, replay_quality)):
        found = {name: document for name in titles if (document := _document(f"replay_{name}"))}
        if found:
            yield section(found)


if __name__ == "__main__":
    sys.exit(main())
