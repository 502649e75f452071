"""`rolltree doctor`: what is installed, what works with what, what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import metadata, util

import typer

from rolltree.cli.output import console, finish, table


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `fix` is a command or a sentence, empty when all is well."""

    name: str
    state: str
    found: str
    fix: str = ""


PARTS = {
    "torch": ("built-in engine", "pip install 'rolltree[engine]'"),
    "transformers": ("built-in engine", "pip install 'rolltree[engine]'"),
    "trl": ("TRL adapter, demo", "pip install 'rolltree[trl]'"),
    "matplotlib": ("plots", "pip install 'rolltree[report]'"),
    "arctic_inference": ("peer in benchmarks", "make bench-peer (in a checkout)"),
}


def run(json_output: bool = typer.Option(False, "--json", help="Print one JSON document as the last line.")) -> None:
    """Say what is installed, what works, and what to do about the rest.

    Example: rolltree doctor
    """
    checks = [_core(), *[_package(module, *use) for module, use in PARTS.items()]]
    screen = console(json_output)
    screen.print(
        table("rolltree doctor", ["part", "state", "found", "to do"], [list(asdict(c).values()) for c in checks])
    )
    broken = any(check.state == "broken" for check in checks)
    finish({"checks": [asdict(check) for check in checks], "ok": not broken}, json_output=json_output, out=None)
    if broken:
        raise typer.Exit(1)


def _core() -> Check:
    """Draft once for real: a repeated text must be drafted from."""
    try:
        import numpy as np

        from rolltree import TreeDrafter

        drafter = TreeDrafter()
        for _ in range(4):
            drafter.cache.add([1, 2, 3], [4, 5, 6])
        batch = drafter.draft(np.array([drafter.open([1, 2, 3])]), np.array([2], np.int32))
        drafts = batch.tokens[0, : batch.lengths[0]].tolist()
    except Exception as error:  # report any failure: this is what the command is for
        return Check(
            "native core", "broken", f"{type(error).__name__}: {error}", "pip install --force-reinstall rolltree"
        )
    if drafts != [4, 5]:
        return Check("native core", "broken", f"drafted {drafts} instead of [4, 5]", "report a bug")
    return Check("native core", "ok", "drafts flow")


def _package(module: str, purpose: str, fix: str) -> Check:
    if util.find_spec(module) is None:
        return Check(f"{module} ({purpose})", "missing", "not installed", fix)
    try:
        version = metadata.version(module.replace("_", "-"))
    except metadata.PackageNotFoundError:
        version = "unknown version"
    return Check(f"{module} ({purpose})", "ok", version)
