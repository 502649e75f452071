"""`rolltree doctor`: what is installed, what works with what, what to do about it.

Without `--for` it looks (metadata, one draft); with `--for PART` it also runs that part, and a part that is missing
counts as not working. vLLM's and verl's own checks live with their adapters, `rolltree.vllm.doctor` and
`rolltree.verl.doctor`: `doctor_lines()` looks and, where there is a proof, `prove_lines()` runs. Trainers that start
vLLM themselves (`cli.frameworks`) are looked at only when they are asked for: the line, and whether it acts here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata, util
from typing import Annotated, Any

import typer

from rolltree.cli import proofs
from rolltree.cli.frameworks import FRAMEWORKS, Framework
from rolltree.cli.output import Json, console, finish
from rolltree.errors import InvalidInputError
from rolltree.findings import Finding


@dataclass(frozen=True, slots=True)
class Package:
    """One package that a part needs."""

    name: str
    """As pip knows it."""
    oldest: tuple[int, ...]
    """Older ones are known not to work."""
    tested: tuple[str, ...]
    """Versions, or their beginnings, that the tests run with."""
    module: str = ""
    """As Python knows it, where that differs."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that a user turns on."""

    use: str
    packages: tuple[Package, ...]
    fix: str
    prove: Callable[[], Iterable[Finding]] | None = None
    """Runs it, for `--for`."""


TORCH = Package("torch", (2, 6), ("2.13", "2.11"))
TRANSFORMERS = Package("transformers", (5, 0), ("5.23", "5.20", "5.19", "5.10"))
PARTS = {
    "store": Part("durable store", (), "use a Python whose sqlite3 is 3.25 or newer", proofs.store),
    "engine": Part("built-in engine", (TORCH, TRANSFORMERS), "pip install 'rolltree[engine]'", proofs.engine),
    "trl": Part(
        "TRL adapter, demo",
        (TORCH, TRANSFORMERS, Package("trl", (1, 10), ("1.14", "1.16")), Package("datasets", (3,), ("4.", "5."))),
        "pip install 'rolltree[trl]'",
        proofs.trl,
    ),
    "replay": Part(
        "recorded rollouts as text, Parquet, .zst",
        (
            Package("tokenizers", (0, 21), ("0.22", "0.23")),
            Package("pyarrow", (15,), ("25.", "26.")),
            Package("zstandard", (0, 22), ("0.25",)),
        ),
        "pip install 'rolltree[replay]'",
    ),
    "report": Part(
        "reports, plots",
        (Package("matplotlib", (3, 8), ("3.",)), Package("Jinja2", (3, 1), ("3.",), "jinja2")),
        "pip install 'rolltree[report]'",
    ),
    "peer": Part(
        "peer in benchmarks",
        (Package("arctic-inference", (0, 1), ("0.3.0",), "arctic_inference"),),
        "make bench-peer (in a checkout)",
    ),
}
ADAPTERS = {
    "vllm": Part("vLLM proposer", (Package("vllm", (0, 22, 1), ("0.28", "0.32")),), "pip install 'rolltree[vllm]'"),
    "verl": Part("verl", (Package("verl", (0, 9), ("0.9.1",)),), "pip install 'rolltree[verl]'"),
}
"""Used where the adapter has no checks of its own."""
NAMES = (*PARTS, *ADAPTERS, *FRAMEWORKS)
GOOD = ("ok", "untested")


def run(
    wanted: Annotated[
        list[str] | None, typer.Option("--for", help=f"Prove that this works: {', '.join(NAMES)}.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Say what is installed, what works, and what to do about the rest; exit 1 when something is broken.

    With --for, run that part as well; exit 1 when it does not work or is not there.

    Example: rolltree doctor --for trl
    """
    asked = wanted or []
    if unknown := set(asked) - set(NAMES):
        raise InvalidInputError("--for", sorted(unknown), f"out of {', '.join(NAMES)}")
    checks = [("core", check) for check in proofs.core()]
    for name, part in PARTS.items():
        checks += [(name, check) for check in _part(name, part, prove=name in asked)]
    for name, part in ADAPTERS.items():
        checks += [(name, check) for check in _adapter(name, part, prove=name in asked)]
    for name in dict.fromkeys(name for name in asked if name in FRAMEWORKS):
        checks += [(name, check) for check in _guarded(name, partial(_framework, FRAMEWORKS[name]))]
    failed = [check for name, check in checks if check.state == "broken" or (name in asked and check.state not in GOOD)]
    for _, check in checks:
        text = f"{check.state:9} {check.name}: {check.found}" + (f"\n{'':9} -> {check.fix}" if check.fix else "")
        console(json_output).print(text, markup=False, highlight=False, soft_wrap=True)
    documents = [{"name": c.name, "state": c.state, "found": c.found, "fix": c.fix, "part": name} for name, c in checks]
    finish({"checks": documents, "asked": asked, "ok": not failed}, json_output=json_output, out=None)
    if failed:
        raise typer.Exit(1)


def _part(name: str, part: Part, *, prove: bool) -> list[Finding]:
    checks = [_package(package, part) for package in part.packages]
    if part.prove is not None and prove and all(check.state in GOOD for check in checks):
        checks += _guarded(name, part.prove)
    return checks


def _adapter(name: str, part: Part, *, prove: bool) -> list[Finding]:
    """What `rolltree.NAME.doctor` finds; without one, only whether the packages are there."""
    try:
        module: Any = import_module(f"rolltree.{name}.doctor")
    except ModuleNotFoundError:
        return [_package(package, part) for package in part.packages]
    checks = _guarded(name, module.doctor_lines)
    if prove and hasattr(module, "prove_lines") and all(check.state in GOOD for check in checks):
        checks += _guarded(name, module.prove_lines)
    return checks


def _framework(one: Framework) -> Iterator[Finding]:
    """Whether the trainer is here, and whether a vLLM that it starts here would draft."""
    version = _version(one.package)
    if version is None and util.find_spec(one.package.replace("-", "_")) is None:
        fix = "run this command where its vLLM workers run"
        yield Finding(one.name, "missing", f"{one.package} is not installed here", fix)
    elif one.checked and version == one.version:
        yield Finding(one.name, "ok", version)
    else:
        known = f"{one.version} ({one.source})"
        how = "checked is" if one.checked else "no version was run, read was"
        yield Finding(one.name, "untested", version or "unknown version", f"{how} {known}: see docs/frameworks.md")
    vllm: Any = import_module("rolltree.vllm.doctor")
    checks = list(vllm.doctor_lines())
    if all(check.state in GOOD for check in checks):
        checks += vllm.switch_lines(" or ".join(filter(None, (one.line, one.own))))
    yield from checks


def _guarded(name: str, call: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The checks of a part; an exception in them is a finding, not the end of the others."""
    try:
        return list(call())
    except Exception as error:  # report any failure: this is what the command is for
        return [Finding(name, "broken", f"{type(error).__name__}: {error}", "see the message")]


def _package(package: Package, part: Part) -> Finding:
    name = f"{package.name} ({part.use})"
    if util.find_spec(package.module or package.name) is None:
        return Finding(name, "missing", "not installed", part.fix)
    version = _version(package.name) or _version(f"{package.name}-cpu")
    if version is None:
        return Finding(name, "untested", "unknown version")
    if numbers(version) < package.oldest:
        return Finding(name, "broken", version, f"{'.'.join(map(str, package.oldest))} or newer: {part.fix}")
    if not version.startswith(package.tested):
        return Finding(name, "untested", version, f"tested with {', '.join(package.tested)}")
    return Finding(name, "ok", version)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) of "2.13.0+cpu"."""
    parts = version.split("+")[0].split(".")
    count = next((i for i, part in enumerate(parts) if not part.isdigit()), len(parts))
    return tuple(map(int, parts[:count]))
