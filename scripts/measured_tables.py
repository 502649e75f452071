"""The tables of docs/measured.md: each of a committed document, as Markdown with its machine and commit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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


def demo(document: dict[str, Any]) -> str:
    """GRPO with rolltree and without, by epoch."""
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
        + table(columns, rows)
        + footnote(document["machine"])
    )


def engine(document: dict[str, Any]) -> str:
    """Rollout speed in the built-in engine, by slots and epoch."""
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
    return title + note + table(("slots", "epoch", *names, "tokens/step"), rows) + footnote(document["machine"])


def vllm(document: dict[str, Any]) -> str:
    """Rollout speed in real vLLM, by epoch."""
    cases = {(case["epoch"], case["drafter"]): case for case in document["cases"]}
    names = ("ngram", "suffix", "rolltree")
    rows = []
    for epoch in sorted({epoch for epoch, _ in cases}):
        speedups = [f"{cases[epoch, name]['speedup']:.2f}x" for name in names]
        ours = cases[epoch, "rolltree"]
        least, most = ours["over_suffix_spread"]
        over = f"{ours['over_suffix']:.2f}x ({least:.3f} to {most:.3f})"
        rows.append((epoch, *speedups, over, *[f"{cases[epoch, name]['tokens_per_step']:.2f}" for name in names[1:]]))
    batch, what = document["cases"][0]["batch"], "Rollout speed in real vLLM, CPU build, relative to no speculation"
    title = f"## `make vllm-bench`\n\n{what}, demo-1m, {batch} requests at a time, T = 1"
    note = f", {document['threads']} threads, median of {document['repeats']} runs.\n\n"
    columns = ("epoch", *names, "over suffix, run by run", "tokens/step of suffix", "of rolltree")
    return title + note + table(columns, rows) + footnote(document["machine"])


def verl(document: dict[str, Any]) -> str:
    """GRPO by verl's trainer, by epoch."""
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
    return title + table(columns, rows) + footnote(document["machine"])


def sharing(document: dict[str, Any]) -> str:
    """Replicas with local trees, a router, sharing."""
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
    return title + table(columns, rows) + footnote(document["machine"])


def index(document: dict[str, Any]) -> str:
    """The tree beside the peer."""
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
    shown = f"{title}, median of {document['repeats']}.\n\n" + table(columns, rows)
    return shown + _with_shared_tree(document["cases"]) + footnote(document["machine"])


def drafting(document: dict[str, Any]) -> str:
    """Pauses, trees that come back, native steps."""
    rows = [
        (f"{case['length']:,}", call, *[f"{times[part]:.2f}" for part in ("p50", "p99", "max")])
        for case in document["pauses"]
        for call, times in case["milliseconds"].items()
    ]
    live = document["pauses"][0]["live_requests"]
    memory = " and ".join(f"{case['rss_over_bytes']:.2f}" for case in document["pauses"])
    title = "## `rolltree bench draft`\n\nSingle calls of a full cache, milliseconds; windows of 64 long rollouts"
    note = f", {live} live requests (draft, advance: of all). The process grew by {memory} of the bytes claimed.\n\n"
    pauses = title + note + table(("tokens a rollout", "call", "p50", "p99", "max"), rows)
    return pauses + _rebuild(document["rebuild"]) + _steps(document["steps"]) + footnote(document["machine"])


def _rebuild(measured: dict[str, Any]) -> str:
    rows = [
        (when, call, *[f"{times[part]:.2f}" for part in ("p50", "p99", "max")])
        for when, calls in measured["milliseconds"].items()
        for call, times in calls.items()
    ]
    title = f"\nTrees that come back from a store: {measured['tokens_per_second'] * 1e-6:.1f} Mtok/s, "
    title += f"{measured['rollouts']:,} rollouts of {measured['prompts']} prompts. Calls meanwhile, milliseconds.\n\n"
    return title + table(("rebuilding", "call", "p50", "p99", "max"), rows)


def _steps(measured: list[dict[str, Any]]) -> str:
    rows = [
        (case["case"], case["rows"], f"{case['step_milliseconds_p50']:.3f}", f"{case['step_milliseconds_p99']:.3f}")
        for case in measured
    ]
    title = "\nA step (settle, draft, budget) as one native call, a chain of 16, "
    title += f"{measured[0]['threads']} threads; milliseconds.\n\n"
    return title + table(("case", "rows", "p50", "p99"), rows)


def replay_times(documents: dict[str, dict[str, Any]]) -> str:
    """Simulated generation on recorded rollouts."""
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
    return title + table(columns, rows) + footnote(last["machine"])


def replay_quality(documents: dict[str, dict[str, Any]]) -> str:
    """How good drafts are, without any cost."""
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
    return title + table(columns, rows) + footnote(list(documents.values())[-1]["machine"])


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


def table(columns: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a table as Markdown."""
    lines = [list(map(str, columns))]
    lines.append(["---"] * len(lines[0]))
    lines += [list(map(str, row)) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def footnote(machine: dict[str, Any]) -> str:
    """Return the line that says on what it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = f"{machine['processor']}, {machine['cores']} cores; {versions}"
    return f"\n{where}; commit {machine['commit']}, {machine['date']}.\n"
