"""The figures of a report, each an SVG text. A figure whose numbers the run did not record is left out."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from rolltree.metrics import SOURCES

INK, SECOND, THIRD = "#1f4e9c", "#c25b12", "#6b6b6b"
SHADES = ("#9ecae1", "#c6dbef", "#6baed6", "#3182bd", "#08519c", "#fdae6b")

_FREE = ("reward",)  # figures whose axis need not start at zero

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One drawn figure."""

    name: str
    """File name without its ending."""
    title: str
    caption: str
    svg: str

    @property
    def data_uri(self) -> str:
        """The figure as the source of an image: pages that hold several have no clash of ids."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


def draw_all(rows: Rows) -> list[Figure]:
    """Every figure that these steps allow, in reading order."""
    made = [_draw(rows, *spec) for spec in _FIGURES]
    return [figure for figure in made if figure is not None]


def _draw(rows: Rows, name: str, title: str, caption: str, paint: Callable[[Any, Rows], bool]) -> Figure | None:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    figure = Canvas(figsize=(6.4, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    if not paint(axes, rows):
        return None
    if name not in _FREE:
        axes.set_ylim(bottom=0)  # after painting: before, it would freeze the top as well
    axes.set_xlabel("training step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    text = StringIO()
    # Text stays text, and the same numbers make the same file.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return Figure(name, title, caption, text.getvalue())


def series(rows: Rows, kind: str, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one recorded number, where it was recorded."""
    found = [(row["step"], row[kind][name]) for row in rows if name in row[kind]]
    return [step for step, _ in found], [value for _, value in found]


def _line(axes: Any, rows: Rows, kind: str, name: str, label: str, color: str = INK, **style: Any) -> bool:
    x, y = series(rows, kind, name)
    if x:
        style = {"lw": 1.6, "marker": "o" if len(x) < 40 else None, "ms": 3.5} | style
        axes.plot(x, y, color=color, label=label, **style)
    return bool(x)


def _tokens_per_step(axes: Any, rows: Rows) -> bool:
    axes.axhline(1, color=THIRD, lw=1, ls="--", label="without speculation")
    axes.set(ylabel="tokens per request and pass")
    return _line(axes, rows, "ratios", "tokens_per_step", "with rolltree")


def _acceptance(axes: Any, rows: Rows) -> bool:
    axes.set(ylabel="share of drafted tokens", ylim=(0, 1))
    return _line(axes, rows, "ratios", "acceptance_rate", "accepted")


def _drafted(axes: Any, rows: Rows) -> bool:
    axes.set(ylabel="tokens per request and pass")
    return _line(axes, rows, "ratios", "drafted_per_step", "drafted", SECOND)


def _speed(axes: Any, rows: Rows) -> bool:
    axes.set(ylabel="tokens per second")
    return _line(axes, rows, "ratios", "tokens_per_second", "rollouts")


def _speedup(axes: Any, rows: Rows) -> bool:
    axes.axhline(1, color=THIRD, lw=1, ls="--", label="the same engine without")
    axes.set(ylabel="times faster")
    return _line(axes, rows, "ratios", "speedup", "with rolltree")


def _reward(axes: Any, rows: Rows) -> bool:
    axes.set(ylabel="mean reward")
    plain = _line(axes, rows, "gauges", "reward_plain", "without rolltree", SECOND, lw=5, alpha=0.4, marker=None)
    return _line(axes, rows, "gauges", "reward", "with rolltree") or plain


def _sources(axes: Any, rows: Rows) -> bool:
    names = [name for name in SOURCES if any(row["sums"].get(f"accepted_{name}") for row in rows)]
    rows = [row for row in rows if row["sums"].get("row_steps")]
    if not names or not rows:
        return False
    x = [row["step"] for row in rows]
    heights = [[row["sums"].get(f"accepted_{name}", 0) / row["sums"]["row_steps"] for row in rows] for name in names]
    colors = [SHADES[SOURCES.index(name) % len(SHADES)] for name in names]
    axes.stackplot(x, heights, labels=[name.replace("_", "-") for name in names], colors=colors)
    axes.set(ylabel="accepted tokens per pass")
    return True


def _memory(axes: Any, rows: Rows) -> bool:
    x, y = series(rows, "gauges", "tree_bytes")
    if x:
        axes.plot(x, [value / 2**20 for value in y], color=INK, lw=1.6)
        axes.set(ylabel="MiB of trees")
    return bool(x)


_FIGURES: tuple[tuple[str, str, str, Callable[[Any, Rows], bool]], ...] = (
    ("tokens_per_step", "Tokens per forward pass", "One is plain decoding; the gain in passes, not in seconds.",
     _tokens_per_step),
    ("speed", "Rollout speed", "Completion tokens per second of generation.", _speed),
    ("speedup", "Speed-up", "Seconds of the same rollouts without drafts, over seconds with.", _speedup),
    ("acceptance", "Acceptance", "Drafted tokens that the policy would have sampled itself.", _acceptance),
    ("drafted", "Draft length", "What the budget let through.", _drafted),
    ("sources", "Where accepted tokens come from",
     "prompt and own: this rollout's text; sibling: the same step; history: earlier steps; shared: other prompts.",
     _sources),
    ("reward", "Reward", "As the trainer logged it.", _reward),
    ("memory", "Memory", "Bytes of all trees, the shared one included.", _memory),
)  # fmt: skip
