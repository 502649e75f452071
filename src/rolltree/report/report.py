"""Puts a report together: one HTML file that needs nothing else, and each figure as an SVG file beside it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.metrics import in_words
from rolltree.report.about import read_about
from rolltree.report.figures import Figure, draw_all
from rolltree.report.summary import summarise
from rolltree.runlog import Skipped, steps
from rolltree.writing import write_text

PAGE = "report.html"
_LABELS = {
    "tokens_per_step": "tokens per request and forward pass",
    "acceptance_rate": "share of drafted tokens accepted",
    "drafted_per_step": "drafted per request and forward pass",
    "tokens_per_second": "rollout tokens per second",
    "speedup": "times faster than the same engine without",
    "estimated_time_saved": "share of decoding time saved, estimated",
    "compute_bound_share": "share of requests and passes in batches bound by compute",
    "reward": "mean reward",
    "tree_bytes": "bytes of trees",
    "tokens": "rollout tokens",
    "seconds": "seconds of generation",
    "sequences": "rollouts",
}
_ORDER = list(_LABELS)


def write_report(run_dir: str | PathLike[str], out: str | PathLike[str] | None = None) -> dict[str, Any]:
    """Read `run_dir`, write `report.html` and `figures/*.svg` into `out` (default: the run's own folder).

    Returns:
        `{run_dir, page, figures: [path], steps, attempts, skipped_lines, skipped_values, in_words, all, first, last}`;
        the last three are `{sums, ratios, gauges}` of all steps, the first fifth and the last fifth, `in_words` says
        what drafting brought over all.

    Raises:
        InvalidInputError: the folder holds no metrics of a training step.

    """
    folder, target = Path(run_dir), Path(out or run_dir)
    left_out = Skipped()
    rows = steps(folder, skipped=left_out)
    if not rows:
        fix = f"{left_out.lines} lines are no metrics." if left_out.lines else ""
        raise InvalidInputError("run_dir", str(run_dir), "a run with at least one training step", fix)
    summary, figures = summarise(rows), draw_all(rows)
    attempts = 1 + max(row["attempt"] for row in rows)
    (target / "figures").mkdir(parents=True, exist_ok=True)
    paths = [target / "figures" / f"{figure.name}.svg" for figure in figures]
    for path, figure in zip(paths, figures, strict=True):
        write_text(path, figure.svg)
    write_text(target / PAGE, _page(folder, summary, figures, attempts))
    files = {"page": str(target / PAGE), "figures": [str(path) for path in paths]}
    skipped = {"skipped_lines": left_out.lines, "skipped_values": left_out.values}
    return {"run_dir": str(run_dir), **files, "attempts": attempts, **skipped, "in_words": _said(summary), **summary}


def _page(folder: Path, summary: dict[str, Any], figures: list[Figure], attempts: int) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(loader=PackageLoader("rolltree.report", "."), autoescape=True, undefined=StrictUndefined)
    return templates.get_template("page.html.j2").render(
        name=folder.resolve().name,
        steps=summary["steps"],
        attempts=attempts,
        said=_said(summary),
        rows=table_rows(summary),
        figures=figures,
        about=read_about(folder),
    )


def _said(summary: dict[str, Any]) -> str:
    return in_words(summary["all"]["sums"])


def table_rows(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(label, all, first, last) of every number, known ones first."""
    flat = {part: {**summary[part]["ratios"], **summary[part]["gauges"], **summary[part]["sums"]} for part in _PARTS}
    names = sorted(set().union(*flat.values()), key=lambda n: (_ORDER.index(n) if n in _ORDER else len(_ORDER), n))
    cells = [[_number(flat[part].get(name)) for part in _PARTS] for name in names]
    return [(_LABELS.get(name, name.replace("_", " ")), *three) for name, three in zip(names, cells, strict=True)]


_PARTS = ("all", "first", "last")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"
