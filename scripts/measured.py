"""Writes what was measured, from benchmarks/*.json: the table of README.md and docs/measured.md.

No number there is typed by hand. What a document does not hold (a batch size that was not run) is left out.

Usage: python scripts/measured.py [--check]   (--check: exit 1 when one of the two pages is not up to date)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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
        *[_raced("engine_warm", batch, 1, full) for batch in (8, 64)],
        _raced("vllm", 32, 3, cold, "vLLM, CPU build"),
        _trained("verl_demo", "verl with vLLM, CPU"),
        *[_simulated(*case) for case in (("aime24", 32), ("cognition", 512), ("full", 1024))],
    ]
    columns = ("generating rollouts", "where", "rolltree", "SuffixDecoding", "tokens/step")
    yield _table(columns, [row for row in rows if row])


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
        ("demo", _demo), ("engine_warm", _engine), ("engine_cold", _engine), ("vllm", _vllm), ("verl_demo", _verl),
        ("sharing", _sharing), ("index", _index), ("draft", _pauses),
    )  # fmt: skip
    yield from (section(document) for name, section in sections if (document := _document(name)))
    yield from _replays()


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
        f"## `rolltree demo`\n\nGRPO on a CPU, 64 prompts x 8 samples, {same}, {weights}. Seconds are of rollouts.\n\n"
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
    name = "full cache" if warm else "from nothing"
    title = (
        f"## `rolltree bench engine`: {name}\n\n{what}: rollout speed relative to the same engine without drafts, T = 1"
    )
    note = f", {document['threads']} threads, median of {document['repeats']} runs.\n\n"
    return title + note + _table(("slots", "epoch", *names, "tokens/step"), rows) + _footnote(document["machine"])


def _vllm(document: dict[str, Any]) -> str:
    cases = {(case["epoch"], case["drafter"]): case for case in document["cases"]}
    names = ("ngram", "suffix", "rolltree")
    rows = []
    for epoch in sorted({epoch for epoch, _ in cases}):
        speedups = [f"{cases[epoch, name]['speedup']:.2f}x" for name in names]
        rows.append((epoch, *speedups, *[f"{cases[epoch, name]['tokens_per_step']:.2f}" for name in names[1:]]))
    batch, what = document["cases"][0]["batch"], "Rollout speed in real vLLM, CPU build, relative to no speculation"
    title = f"## `make vllm-bench`\n\n{what}, demo-1m, {batch} requests at a time, T = 1"
    note = f", {document['threads']} threads, median of {document['repeats']} runs.\n\n"
    columns = ("epoch", *names, "tokens/step of suffix", "of rolltree")
    return title + note + _table(columns, rows) + _footnote(document["machine"])


def _verl(document: dict[str, Any]) -> str:
    rows = [
        (e["epoch"], f"{e['reward']:.3f}", f"{e['reward_plain']:.3f}", f"{e['tokens_per_step']:.2f}",
         f"{e['seconds']:.1f}", f"{e['seconds_plain']:.1f}", f"{e['speedup']:.2f}x")
        for e in document["epochs"]
    ]  # fmt: skip
    settings = document["settings"]
    shape = (
        f"{settings['prompts']} prompts x {settings['samples']} samples an epoch, {settings['batch']} prompts a step"
    )
    title = f"## GRPO by verl\n\nGRPO by verl's trainer with vLLM's CPU build, {shape}; seconds of generation.\n\n"
    columns = ("epoch", "reward", "alone", "tokens/step", "seconds", "alone", "speed-up")
    return title + _table(columns, rows) + _footnote(document["machine"])


def _sharing(document: dict[str, Any]) -> str:
    rows = []
    for case in document["cases"]:
        steps = case["steps"]
        cells = [f"{step['tokens_per_step']:.2f}" for step in steps]
        cells += [f"{step['engine_steps']:,}" for step in steps] + [f"{step['skew']:.2f}" for step in steps]
        moved = f"{case['shared_bytes_per_token']:.1f}" if case["shared_bytes_per_token"] else "-"
        rows.append((case["replicas"], case["mode"] if case["replicas"] > 1 else "sees all", *cells, moved))
    first, second = "step 1", "2"
    title = (
        "## Replicas that share\n\nAIME rollouts of two training steps, 30 prompts x "
        f"{document['samples']} samples, {document['slots']} slots over all replicas, forced text; news every "
        f"{document['every']} engine steps.\nEngine steps are the slowest replica's, skew is that over the mean; "
        "bytes to and from the exchange a generated token.\n\n"
    )
    columns = ("replicas", "", f"tokens/step, {first}", second, f"engine steps, {first}", second)
    columns += (f"skew, {first}", second, "bytes")
    return title + _table(columns, rows) + _footnote(document["machine"])


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
    title = "## `rolltree bench index`\n\nThe tree beside arctic-inference, one run, one thread"
    table = f"{title}, median of {document['repeats']}.\n\n" + _table(columns, rows)
    return table + _with_shared_tree(document["cases"]) + _footnote(document["machine"])


def _pauses(document: dict[str, Any]) -> str:
    rows = [
        (f"{case['length']:,}", call, *[f"{times[part]:.2f}" for part in ("p50", "p99", "max")])
        for case in document["pauses"]
        for call, times in case["milliseconds"].items()
    ]
    live = document["pauses"][0]["live_requests"]
    memory = " and ".join(f"{case['rss_over_bytes']:.2f}" for case in document["pauses"])
    title = "## `rolltree bench draft`\n\nSingle calls of a full cache, milliseconds; windows of 64 long rollouts"
    note = f", {live} live requests (draft, advance: of all). The process grew by {memory} of the bytes claimed.\n\n"
    return (
        title + note + _table(("tokens a rollout", "call", "p50", "p99", "max"), rows) + _footnote(document["machine"])
    )


def _replays() -> Iterator[str]:
    for titles, table in ((REPLAYS, _replay_times), (QUALITY, _replay_quality)):
        found = {name: document for name in titles if (document := _document(f"replay_{name}"))}
        if found:
            yield table(found)


REPLAYS = {
    "aime24": "AIME, 8 samples, history",
    "aime24_cold": "AIME, 8 samples, cold",
    "aime24_50": "AIME, 50 samples, history",
    "aime24_50_cold": "AIME, 50 samples, cold",
    "cognition": "cognition, 3 samples, history",
    "cognition_cold": "cognition, 3 samples, cold",
    "full": "AIME, all prompts, 50 samples cut to 128 tokens, cold",
}
WIDE_TREE = "rolltree:shape=tree:max_draft=64:min_survival=0.01"
QUALITY = {"quality_aime24": "AIME, 8 samples, history", "quality_cognition": "cognition, 3 samples, history"}


def _replay_times(documents: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, document in documents.items():
        for slots in dict.fromkeys(case["batch"] for case in document["cases"]):
            cases = {case["drafter"]: case for case in document["cases"] if case["batch"] == slots}
            best = max((case for key, case in cases.items() if key.startswith("suffix")), key=lambda c: c["speedup"])
            shown = [cases.get(key) for key in ("rolltree", "rolltree:shape=tree", WIDE_TREE, "suffix")]
            shown += [best, *[cases.get(key) for key in ("srt", "history", "ngram")]]
            rows.append((REPLAYS[name], slots, *[f"{case['speedup']:#.3g}x" if case else "-" for case in shown]))
    last = list(documents.values())[-1]
    title = (
        f"## `rolltree replay`\n\nRecorded RL rollouts, simulated generation on {last['cost_profile']} (a roofline),\n"
        "speed-up over no drafts. Every second prompt; settings were chosen on the others. The time that drafting\n"
        "itself takes is left out. suffix: arctic-inference with vLLM's defaults, and the better of these and\n"
        "depth 64, factor 4.\n\n"
    )
    columns = (
        "rollouts",
        "slots",
        "rolltree",
        "tree of 16",
        "of 64",
        "suffix",
        "suffix, best",
        "srt",
        "history",
        "ngram",
    )
    return title + _table(columns, rows) + _footnote(last["machine"])


def _replay_quality(documents: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, document in documents.items():
        for case in document["cases"]:
            error = case.get("expected_calibration_error")
            shape = case["shape"] if case["shape"] == "chain" else f"tree of {case['max_draft']}"
            rows.append((
                QUALITY[name], case["drafter"].split(":")[0], shape, f"{case['tokens_per_step']:.2f}",
                f"{case['drafted_per_step']:.1f}", f"{case['acceptance_rate']:.2f}", f"{case['ceiling_share']:.2f}",
                "-" if error is None else f"{error:.3f}",
            ))  # fmt: skip
    title = (
        "## Draft quality\n\nThe same prompts, all requests in lock step, all that is drafted is verified. Ceiling:\n"
        "an oracle over the same cache. ECE: expected calibration error of the claimed survival.\n\n"
    )
    columns = ("rollouts", "drafter", "shape", "tokens/step", "drafted", "accepted", "of ceiling", "ECE")
    return title + _table(columns, rows) + _footnote(list(documents.values())[-1]["machine"])


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
