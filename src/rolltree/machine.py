"""What a number was measured on: processor, versions, commit. No host names, no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path


def describe(packages: Iterable[str] = ("numpy", "torch", "transformers", "trl")) -> dict[str, object]:
    """Return a JSON-ready description of this machine and of the installed versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in ("rolltree", *packages) if (version := _version(name))},
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _commit() -> str | None:
    """Return the commit of the checkout that this file belongs to, marked when code was changed since.

    Figures and their plots do not count: one command writes several of them. Where there is no checkout (a bundle for
    another machine), what the variable ROLLTREE_COMMIT says.
    """
    code = ("--", ":/", ":(exclude,top)benchmarks", ":(exclude,top)docs")
    commit, changed = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain", "-uno", *code)
    return os.environ.get("ROLLTREE_COMMIT") if commit is None else commit + ("-dirty" if changed else "")


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
