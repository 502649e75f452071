"""Writes the measured tables of README.md from benchmarks/*.json. Numbers are never typed by hand.

Usage: python scripts/readme_tables.py [--check]   (--check: exit 1 when README.md is not up to date)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- begin measured -->\n", "<!-- end measured -->\n"


def main() -> int:
    """Rewrite, or check, the part of README.md between the marks."""
    path = ROOT / "README.md"
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    text = before + BEGIN + "\n".join(_sections()) + END + after
    if "--check" in sys.argv[1:]:
        return int(text != path.read_text())
    path.write_text(text)
    return 0


def _sections() -> Iterable[str]:
    sections = (("demo", _demo), ("engine_warm", _engine), ("engine_cold", _engine), ("index", _index))
    for name, section in sections:
        path = ROOT / "benchmarks" / f"{name}.json"
        if path.exists():
            yield section(json.loads(path.read_text()))


def _demo(document: dict[str, Any]) -> str:
    rows = [
        (e["epoch"], f"{e['reward']:.3f}", f"{e['tokens_per_step']:.2f}", f"{e['seconds']:.2f}",
         f"{e['seconds_plain']:.2f}", f"{e['speedup']:.2f}x", _times(e.get("speedup_over_generate")))
        for e in document["epochs"]
    ]  # fmt: skip
    same = f"{document['identical_rollouts']:,} of {document['rollouts']:,} rollouts identical"
    weights = "weights bit-identical" if document["identical_weights"] else "weights differ"
    columns = ("epoch", "reward", "tokens/step", "seconds", "without", "speed-up", "over stock `generate`")
    return (
        f"**`rolltree demo`**: GRPO on a CPU, 64 prompts x 8 samples, {same}, {weights}. Seconds are of rollouts.\n\n"
        + _table(columns, rows)
        + _footnote(document["machine"])
    )


def _engine(document: dict[str, Any]) -> str:
    cases = document["cases"]
    warm = cases[0]["remembered_rollouts"]
    order = ("generate", "ngram", "suffix", "rolltree", "rolltree-tree")
    names = [n for n in order if any(c["drafter"] == n for c in cases)]
    last = max(c["epoch"] for c in cases)
    rows = []
    for batch in sorted({c["batch"] for c in cases}):
        for epoch in sorted({1, min(2, last), last}):
            found = {c["drafter"]: c for c in cases if c["batch"] == batch and c["epoch"] == epoch}
            cells = [f"{found[n]['speedup']:.2f}x" for n in names]
            rows.append((batch, epoch, *cells, f"{found['rolltree']['tokens_per_step']:.2f}"))
    what = f"{cases[0]['model']}, cache warmed by its {warm:,} rollouts" if warm else f"{cases[0]['model']}, cold start"
    title = f"**`rolltree bench engine`**, {what}: rollout speed relative to the same engine without drafts, T = 1"
    note = f", {document['threads']} threads, median of {document['repeats']} runs.\n\n"
    return title + note + _table(("slots", "epoch", *names, "tokens/step"), rows) + _footnote(document["machine"])


def _index(document: dict[str, Any]) -> str:
    rows = []
    for case in document["cases"]:
        ours, peer, ratio = case["rolltree"], case["peer"] or {}, case["ratio"] or {}
        rows.append((
            case["case"], case["live_requests"],
            _pair(ours, peer, "append_tokens_per_second", 1e-6), _times(ratio.get("append")),
            _pair(ours, peer, "bytes_per_token", 1), _times(ratio.get("bytes")),
            _pair(ours, peer, "draft_microseconds", 1), _times(ratio.get("draft")),
        ))  # fmt: skip
    columns = ("case", "live", "append Mtok/s (peer)", "x", "bytes/token (peer)", "x", "draft µs (peer)", "x")
    title = "**`rolltree bench index`**: the tree beside arctic-inference, one run, one thread"
    table = f"{title}, median of {document['repeats']}.\n\n" + _table(columns, rows)
    return table + _with_shared_tree(document["cases"]) + _footnote(document["machine"])


def _with_shared_tree(cases: list[dict[str, Any]]) -> str:
    """What the default cache costs, which indexes recent rollouts twice."""
    shared = [case["rolltree_with_shared_tree"] for case in cases]
    low, high = (f(s["bytes_per_token"] for s in shared) for f in (min, max))
    slow, fast = (f(s["append_tokens_per_second"] * 1e-6 for s in shared) for f in (min, max))
    figures = f"{low:.0f} to {high:.0f} bytes a token and {slow:.1f} to {fast:.1f} Mtok/s"
    return (
        "\nThese are the trees of the prompts alone. The default cache indexes its latest 2,048 rollouts twice,\n"
        f"once more in the tree that all prompts share: then {figures}.\n"
    )


def _pair(ours: dict[str, Any], peer: dict[str, Any], key: str, scale: float) -> str:
    if key not in ours:
        return "-"
    text = f"{ours[key] * scale:.3g}"
    return f"{text} ({peer[key] * scale:.3g})" if key in peer else text


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}x"


def _table(columns: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(map(str, columns))]
    lines.append(["---"] * len(lines[0]))
    lines += [list(map(str, row)) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _footnote(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = f"{machine['processor']}, {machine['cores']} cores; {versions}"
    return f"\n{where}; commit {machine['commit']}, {machine['date']}.\n"


if __name__ == "__main__":
    sys.exit(main())
