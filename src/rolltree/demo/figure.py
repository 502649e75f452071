"""The demo's figure: reward and speedup over the epochs. Draws into a file, never on a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rolltree.writing import beside

INK, PLAIN, STOCK = "#1f4e9c", "#c25b12", "#6b6b6b"


def draw(epochs: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write a PNG with two panels; `epochs` are rows of the demo's document, at least one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    reward, speed = figure.subplots(1, 2)
    _draw_reward(reward, epochs)
    _draw_speedup(speed, epochs)
    figure.suptitle(title, fontsize=11)
    with beside(path) as draft:
        figure.savefig(draft, dpi=130)


def _draw_reward(axes: Any, epochs: list[dict[str, Any]]) -> None:
    x = [row["epoch"] for row in epochs]
    axes.plot(x, [row["reward_plain"] for row in epochs], color=PLAIN, lw=6, alpha=0.4, label="without")
    axes.plot(x, [row["reward"] for row in epochs], color=INK, lw=1.8, marker="o", ms=4, label="with rolltree")
    axes.set(xlabel="epoch", ylabel="mean reward", title="Same training")
    _finish(axes)


def _draw_speedup(axes: Any, epochs: list[dict[str, Any]]) -> None:
    x = [row["epoch"] for row in epochs]
    axes.axhline(1, color=PLAIN, lw=1, ls="--")
    axes.plot(x, [row["speedup"] for row in epochs], color=INK, lw=1.8, marker="o", ms=4, label="same engine without")
    stock = [row["speedup_over_generate"] for row in epochs]
    if None not in stock:
        axes.plot(x, stock, color=STOCK, lw=1.4, marker="s", ms=4, label="model.generate")
    axes.set(xlabel="epoch", ylabel="times faster rollouts", title="Rollouts with rolltree, against", ylim=(0, None))
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
