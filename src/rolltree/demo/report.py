"""What the demo shows: the JSON document, the table for a person, the figure. Measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rolltree import machine
from rolltree.demo.config import DemoConfig
from rolltree.demo.race import Race, epoch_rows

Document = dict[str, Any]


def document(config: DemoConfig, race: Race, plot: Path | None, seconds: float) -> Document:
    """Everything that was measured, ready for JSON. Keys are a contract; units are in the names."""
    import torch

    rows = epoch_rows(race)
    return {
        **race.identity(),
        "partial": race.interrupted,
        "epochs": rows,
        "plot": str(plot) if plot else None,
        "seconds_total": seconds,
        "settings": config.settings(),
        "machine": machine.describe() | {"torch_threads": torch.get_num_threads()},
    }


def passed(document: Document) -> bool:
    """Whether the two runs did the same in every respect that could be compared."""
    return (
        document["identical_rollouts"] == document["rollouts"]
        and document["identical_rewards"]
        and document["identical_weights"] is not False
    )


def render(document: Document) -> Group:
    """The table and the verdict, for a rich console."""
    return Group(_table(document["epochs"]), *map(Text, _verdict(document)))


def _table(epochs: list[dict[str, Any]]) -> Table:
    table = Table(title="Rollouts: the same engine with and without rolltree, and stock model.generate")
    for name in ("epoch", "reward", "tokens/step", "with s", "without s", "ratio", "generate s", "ratio "):
        table.add_column(name, justify="right")
    for row in epochs:
        table.add_row(
            str(row["epoch"]),
            _both(row["reward"], row["reward_plain"]),
            f"{row['tokens_per_step']:.2f}",
            f"{row['seconds']:.2f}",
            f"{row['seconds_plain']:.2f}",
            f"{row['speedup']:.2f}x",
            _or_dash(row["seconds_generate"], "{:.2f}"),
            _or_dash(row["speedup_over_generate"], "{:.2f}x"),
        )
    return table


def _both(fast: float, plain: float) -> str:
    return f"{fast:.3f}" if fast == plain else f"{fast:.3f} / {plain:.3f} (differ)"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _verdict(document: Document) -> list[str]:
    epochs = document["epochs"]
    lines = []
    if document["partial"]:
        lines.append(f"Partial: stopped after {len(epochs)} of {document['settings']['epochs']} epochs.")
    lines.append(f"Identical rollouts: {document['identical_rollouts']:,} of {document['rollouts']:,}.")
    if document["identical_weights"] is not None:
        hashes = document["weights_sha256"]
        equal = "identical" if document["identical_weights"] else "DIFFERENT"
        lines.append(f"Weights after training: {equal}. SHA-256 with    {hashes['rolltree']}")
        lines.append(f"{' ' * (len(equal) + 25)} SHA-256 without {hashes['plain']}")
    if not document["identical_rewards"]:
        lines.append("Rewards: DIFFERENT.")
    if epochs:
        lines.append(_totals(epochs))
    if document["plot"]:
        lines.append(f"Figure: {document['plot']}")
    return lines


def _totals(epochs: list[dict[str, Any]]) -> str:
    fast, plain = (sum(row[name] for row in epochs) for name in ("seconds", "seconds_plain"))
    text = f"Rollouts in all: {fast:.1f} s with, {plain:.1f} s without: {plain / fast:.2f}x"
    if epochs[0]["seconds_generate"] is not None:
        generate = sum(row["seconds_generate"] for row in epochs)
        text += f"; model.generate {generate:.1f} s: {generate / fast:.2f}x"
    return text + "."
