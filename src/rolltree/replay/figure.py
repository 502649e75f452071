"""The figure of a replay: tokens per step, speedup by slots, acceptance by draft position, calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rolltree.errors import MissingDependencyError
from rolltree.writing import beside


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the four panels, in the format that the name's ending says.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("--plot needs matplotlib: pip install 'rolltree[report]'") from error
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    by_drafter: dict[str, list[dict[str, Any]]] = {}
    for case in document["cases"]:
        by_drafter.setdefault(case["drafter"], []).append(case)
    for name, cases in by_drafter.items():
        slots = [str(case["batch"] or "all") for case in cases]
        panels[0, 0].plot(slots, [case["tokens_per_step"] for case in cases], "o-", label=name)
        panels[0, 1].plot(slots, [case["speedup"] for case in cases], "o-", label=name)
        places = cases[0]["by_position"]
        panels[1, 0].plot([p["position"] for p in places], [p["acceptance_rate"] for p in places], ".-", label=name)
        buckets = cases[0].get("calibration", [])
        panels[1, 1].plot([b["claimed"] for b in buckets], [b["accepted"] for b in buckets], ".-", label=name)
    _ceiling(panels[0, 0], next(iter(by_drafter.values())))
    panels[0, 1].axhline(1.0, color="grey", linewidth=0.8)
    panels[1, 1].plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    _label(panels[0, 0], "Tokens per request and engine step", "slots", "tokens")
    _label(panels[0, 1], f"Speedup over no drafts ({document['cost_profile']})", "slots", "times")
    _label(panels[1, 0], "Acceptance by place in the draft", "place", "share of verified tokens")
    _label(panels[1, 1], "Calibration", "claimed survival", "accepted share")
    with beside(path) as draft:
        figure.savefig(draft, dpi=110)


def _ceiling(axes: Any, cases: list[dict[str, Any]]) -> None:
    if cases[0]["ceiling_tokens_per_step"] is not None:
        slots = [str(case["batch"] or "all") for case in cases]
        axes.plot(slots, [case["ceiling_tokens_per_step"] for case in cases], "k--", label="ceiling")


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
