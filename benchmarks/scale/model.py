"""What a DAPO run of a 7B model on many GPUs asks of memory, disk, network and CPU, worked out from measured figures.

Measured, from the committed documents of benchmarks/: tokens and draft tokens a row step, the CPU time of drafting and
of taking text in, bytes of a token in a tree and in a store, the speed at which a tree is built. Calculated: how fast a
GPU generates, by the roofline `h100-7b` (no launches, no scheduler, no tail), so a real run asks for less each second.
Given: the training's shape and what a machine has, the fields of `Training` and `Machine`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolltree.config import CacheConfig
from rolltree.metrics import ratio
from rolltree.replay.profiles import Load, load_profile

Figures = dict[str, float]
GPUS = (8, 64, 512)
LENGTHS = (1024, 4096)
MB, GB = 1e6, 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """DAPO on DAPO-Math-17k."""

    prompts: int = 17_000
    samples: int = 16
    step: int = 512
    """Prompts of a training step."""
    prompt_tokens: int = 200
    window: int = CacheConfig().window
    """Rollouts that a prompt's tree holds, from the fourth epoch on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A node."""

    gpus: int = 8
    slots: int = 256
    """Requests that a GPU runs at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Figures of the committed documents."""

    speeds: dict[int, dict[str, float]]
    """By slots: tokens and draft tokens a row step, microseconds of drafting a row step and of taking in a token."""
    tree_bytes: float
    """Of a token in its prompt's own tree."""
    store_bytes: float
    """Of a token in the file."""
    append: float
    """Tokens a second that one core puts into a tree, rollout by rollout."""
    warm: float
    """Tokens a row step with an earlier checkpoint's rollouts, at 32 slots."""
    cold: float
    """The same without any."""

    @classmethod
    def read(cls, folder: Path) -> Measured:
        """Read them."""
        names = ("scale", "index", "replay_aime24", "replay_aime24_cold")
        scale, index, replay, cold = (json.loads((folder / f"{name}.json").read_text()) for name in names)
        whole, stored = (next(c for c in scale["cases"] if c["case"] == name) for name in ("all in memory", "store"))
        earlier, last = whole["epochs"][-2:]
        own = (last["tree_bytes"] - earlier["tree_bytes"]) / (last["tree_tokens"] - earlier["tree_tokens"])
        built = next(c for c in index["cases"] if c["case"] == "aime24/whole-response")
        speeds, bare = (
            {c["batch"]: c for c in document["cases"] if c["drafter"] == "rolltree"} for document in (replay, cold)
        )
        return cls(
            speeds=speeds,
            tree_bytes=own,
            store_bytes=stored["store_bytes_per_token"],
            append=built["rolltree"]["append_tokens_per_second"],
            warm=speeds[32]["tokens_per_step"],
            cold=bare[32]["tokens_per_step"],
        )  # fmt: skip


def figures(measured: Measured, gpus: int, length: int, training: Training, machine: Machine) -> Figures:
    """Work out one run: `length` generated tokens a rollout, on `gpus` GPUs with an engine each."""
    rows = min(machine.slots, training.step * training.samples // gpus)
    speed = measured.speeds[min(measured.speeds, key=lambda slots: abs(slots - rows))]
    context = rows * (training.prompt_tokens + length // 2)
    load = Load(rows, round(rows * speed["drafted_per_step"]), context=context)
    steps = 1 / load_profile("h100-7b").seconds(load)  # a second
    tokens = steps * rows * speed["tokens_per_step"]
    epoch = training.prompts * training.samples * length
    tree = training.window * length * measured.tree_bytes  # of one prompt
    rebuilt = training.window * length
    opened = tokens / (training.samples * length)  # prompts a second that come to a GPU
    nodes = gpus / machine.gpus
    return {
        "rows": rows,
        "tokens_a_second": tokens,
        "all_tokens_a_second": tokens * gpus,
        "step_seconds": training.step * training.samples * length / (tokens * gpus),
        "epoch_tree_bytes": epoch * measured.tree_bytes,
        "routed_bytes": max(1, training.step / gpus) * tree,
        "unrouted_bytes": min(training.step, training.step * training.samples / gpus) * tree,
        "unrouted_known": min(1.0, machine.gpus / gpus),
        "drafting_cores": steps * rows * speed["draft_microseconds_per_step"] * 1e-6,
        "indexing_cores": tokens * speed["update_microseconds_per_token"] * 1e-6,
        "rebuilding_cores": opened * rebuilt / measured.append,
        "rebuilding_seconds": rebuilt / measured.append,
        "epoch_store_bytes": epoch * measured.store_bytes,
        "node_store_bytes_a_second": tokens * machine.gpus * measured.store_bytes,
        "node_rollouts_a_second": tokens * machine.gpus / length,
        "shared_in_bytes_a_second": 4 * tokens * gpus * (1 - 1 / nodes),
        "shared_in_cores": tokens * gpus * (1 - 1 / nodes) / measured.append,
    }


ROWS = (
    ("requests at a time on a GPU", "rows", 1, "{:.0f}"),
    ("tokens/s of a GPU, thousand (roofline)", "tokens_a_second", 1e3, "{:.1f}"),
    ("seconds of a training step's rollouts, without its tail", "step_seconds", 1, "{:.1f}"),
    ("**memory**: an epoch as trees, GB", "epoch_tree_bytes", GB, "{:.0f}"),
    ("a GPU's trees of one training step, each prompt on one GPU, GB", "routed_bytes", GB, "{:.2f}"),
    ("the same, samples spread over all GPUs and every history shared, GB", "unrouted_bytes", GB, "{:.2f}"),
    ("**history**: part in the node's own store, samples spread", "unrouted_known", 1, "{:.3f}"),
    ("**CPU**, cores a GPU: drafting", "drafting_cores", 1, "{:.3f}"),
    ("taking in what was generated", "indexing_cores", 1, "{:.3f}"),
    ("rebuilding trees of returning prompts", "rebuilding_cores", 1, "{:.3f}"),
    ("a tree's rebuilding, milliseconds", "rebuilding_seconds", 1e-3, "{:.0f}"),
    ("**disk**: an epoch in stores, GB", "epoch_store_bytes", GB, "{:.2f}"),
    ("a node writes, MB/s", "node_store_bytes_a_second", MB, "{:.2f}"),
    ("rollouts/s into a node's store", "node_rollouts_a_second", 1, "{:.0f}"),
    ("**network**, all rollouts to all nodes: into a node, MB/s", "shared_in_bytes_a_second", MB, "{:.1f}"),
    ("cores of a node that index them", "shared_in_cores", 1, "{:.2f}"),
)
"""Title, figure, unit, format."""


def tables(folder: Path) -> str:
    """The tables of docs/scale.md, as Markdown."""
    return "\n".join((_memory(json.loads((folder / "scale.json").read_text())), _runs(Measured.read(folder))))


def _runs(measured: Measured) -> str:
    training, machine = Training(), Machine()
    cases = [(length, gpus) for length in LENGTHS for gpus in GPUS]
    found = [figures(measured, gpus, length, training, machine) for length, gpus in cases]
    columns = ["", *[f"{gpus} GPUs, {length // 1024}k tokens" for length, gpus in cases]]
    rows = [[title, *[form.format(one[key] / unit) for one in found]] for title, key, unit, form in ROWS]
    note = (
        f"\nFrom: {measured.tree_bytes:.1f} bytes a token in a prompt's own tree,"
        f" {measured.store_bytes:.2f} bytes a token in the store,\n"
        f"{measured.append / 1e6:.1f} Mtok/s into a tree by one core; with an earlier checkpoint's"
        f" rollouts {measured.warm:.2f} tokens a row\nstep, without any {measured.cold:.2f} (AIME, 32 slots).\n"
    )
    return "\n".join(_table(columns, rows)) + "\n" + note


def _memory(document: dict[str, Any]) -> str:
    columns = ["trees", "tokens/step", "of all in memory", *[f"epoch {e + 1}" for e in range(document["epochs"])]]
    columns += ["trees at most, MB", "process at most, MB", "came back", "opening, s (load)", "store, bytes/token"]
    rows = [
        [
            case["case"], f"{case['tokens_per_step']:.3f}", f"{case['share_of_all_in_memory']:.4f}",
            *[f"{epoch['tokens_per_step']:.3f}" for epoch in case["epochs"]],
            f"{max(case['peak_tree_bytes'], case['tree_bytes']) / MB:,.0f}", f"{case['peak_rss_bytes'] / MB:,.0f}",
            f"{case['rebuilt_prompts']:,}", f"{case['open_seconds']:.1f} ({case['load_average']:.1f})",
            f"{case['store_bytes_per_token']:.2f}" if "store_bytes_per_token" in case else "-",
        ]
        for case in document["cases"]
    ]  # fmt: skip
    tokens, rollouts = document["cases"][0]["tokens"], document["prompts"] * document["samples"] * document["epochs"]
    head = (
        f"{document['prompts']:,} prompts x {document['samples']}, {document['epochs']} epochs,"
        f" {tokens / 1e6:.1f} million tokens ({ratio(tokens, rollouts):,.0f} a rollout);\n"
        f"{document['bytes'] / MB:,.0f} MB of trees, as"
        f" {document['capacity_bytes'] / 2**30:.0f} GiB for 17,000 prompts; {document['slots']} slots.\n\n"
    )
    made = document["machine"]
    return (
        head + "\n".join(_table(columns, rows)) + f"\n\n{made['processor']}; commit {made['commit']}, {made['date']}.\n"
    )


def _table(columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    for line in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(line)} |"
