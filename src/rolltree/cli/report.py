"""`rolltree report RUN_DIR`: figures and a page from a run's metrics."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Annotated

import typer

from rolltree.cli.output import Json, check_folder, console, finish, table
from rolltree.errors import MissingDependencyError

_SKIPPED = {
    "skipped_lines": "lines that are no metrics (torn, or damaged)",
    "skipped_values": "values that are no finite numbers",
}


def run(
    run_dir: Annotated[Path, typer.Argument(help="Folder with metrics.jsonl.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            callback=lambda path: path and check_folder(path, "--out"),
            help="Folder for the page. Default: RUN_DIR.",
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Draw a run: tokens per pass, speed, acceptance, sources, reward, memory, on one page that needs nothing else.

    Example: rolltree report runs/grpo-1
    """
    missing = [name for name in ("matplotlib", "jinja2") if util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"A report needs {', '.join(missing)}: pip install 'rolltree[report]'")
    from rolltree.report import write_report
    from rolltree.report.report import table_rows

    screen = console(json_output)
    document = write_report(run_dir, out)
    screen.print(table(f"{run_dir}: {document['steps']} steps", ["", "all", "first", "last"], table_rows(document)))
    if document["in_words"]:
        screen.print(document["in_words"], highlight=False)
    for key, what in _SKIPPED.items():
        if document[key]:
            screen.print(f"{document[key]:,} {what} were left out.")
    screen.print(document["page"], markup=False, highlight=False, soft_wrap=True)
    finish(document, json_output=json_output, out=None)
