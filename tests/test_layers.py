"""The layer table: a module imports only rows above its own, and only the third-party packages its row allows.

CONTRIBUTING.md shows the same table; the one below is what is enforced.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "rolltree"

if not PACKAGE.exists():
    pytest.skip("there is no source tree: these tests run against an installed wheel", allow_module_level=True)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Modules that stand side by side: they may not import one another."""

    modules: frozenset[str]
    third_party: frozenset[str]
    lazy_third_party: frozenset[str] = frozenset()
    """Allowed inside functions and under TYPE_CHECKING only, besides `third_party`."""
    lazy_rows: frozenset[str] = frozenset()
    """Modules of rows above that may be imported inside functions only: importing them loads a framework."""


def row(modules: str, third_party: str = "numpy", *, lazy: str = "", lazy_rows: str = "") -> Row:
    """Return a row from blank-separated names."""
    names = [frozenset(text.split()) for text in (modules, third_party, lazy, lazy_rows)]
    return Row(modules=names[0], third_party=names[1], lazy_third_party=names[2], lazy_rows=names[3])


FRAMEWORKS = "torch transformers trl datasets accelerate"
HEAVY = "sampling engine trl"
ROWS = (
    row("errors types _native"),
    row("tokens machine metrics recent writing forking findings"),
    row("config budget traces runlog", lazy="zstandard"),
    row("store"),
    row("rebuilding"),
    row("prompts"),
    row("sessions"),
    row("cache"),
    row("step_cost runahead"),
    row("drafting"),
    row("sharing", lazy="ray"),
    row("serving"),
    row("sampling", "numpy torch"),
    row("engine", "numpy torch transformers"),
    row("vllm", "numpy", lazy="torch vllm prometheus_client"),
    row("trl", f"numpy {FRAMEWORKS}"),
    row("demo", f"numpy rich {FRAMEWORKS}", lazy="matplotlib"),
    row("verl", "numpy ray omegaconf verl torch", lazy="vllm transformers"),
    row("replay", "numpy", lazy="arctic_inference matplotlib pyarrow tokenizers transformers"),
    row("report", "", lazy="matplotlib jinja2"),
    row("bench", f"numpy {FRAMEWORKS}", lazy="arctic_inference vllm tqdm"),
    row("__init__", "", lazy_rows=HEAVY),
    row("cli", "numpy typer rich", lazy=FRAMEWORKS, lazy_rows=HEAVY),
)
ROW_OF = {module: index for index, layer in enumerate(ROWS) for module in layer.modules}


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, where it stands, and whether importing the file runs it."""

    name: str
    line: int
    lazy: bool


def imports(tree: ast.AST, *, lazy: bool = False) -> Iterator[Import]:
    """Yield every import below `tree`; those in functions and under TYPE_CHECKING are lazy."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(name, node.lineno, lazy) for name in imported_modules(node))
        else:
            deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
            yield from imports(node, lazy=lazy or deferred)


def imported_modules(node: ast.ImportFrom) -> list[str]:
    """Return the modules a `from` import names; `from rolltree import engine` names rolltree.engine.

    A name that is no module, such as a public class, comes from the package's `__init__`.
    """
    if node.level:
        return ["." * node.level]
    assert node.module is not None
    if node.module == "rolltree":
        return [f"rolltree.{alias.name if alias.name in ROW_OF else '__init__'}" for alias in node.names]
    return [node.module]


def is_type_checking(node: ast.AST) -> bool:
    """Return whether `node` is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def violations(module: str, source: str) -> list[str]:
    """Return what the top-level module or package `module` imports against the table."""
    if module not in ROW_OF:
        return [f"{module} is in no row: add it to the table in tests/test_layers.py and in CONTRIBUTING.md"]
    found = (check(module, item) for item in imports(ast.parse(source)))
    return [text for text in found if text]


def check(module: str, item: Import) -> str:
    """Return what is wrong with one import, or an empty string."""
    top, *rest = item.name.split(".")
    if top == "":
        return f"line {item.line}: relative import; write it out"
    if top == "rolltree":
        return check_internal(module, rest[0] if rest else "__init__", item)
    if top in sys.stdlib_module_names:
        return ""
    layer = ROWS[ROW_OF[module]]
    allowed = layer.third_party | (layer.lazy_third_party if item.lazy else frozenset())
    where = "" if item.lazy or top not in layer.lazy_third_party else " at module level"
    return "" if top in allowed else f"line {item.line}: {module} may not import {top}{where}"


def check_internal(module: str, target: str, item: Import) -> str:
    """Return what is wrong with one import of our own, or an empty string."""
    if target == module:
        return ""
    if target not in ROW_OF:
        return f"line {item.line}: rolltree.{target} is in no row"
    if ROW_OF[target] >= ROW_OF[module]:
        return f"line {item.line}: {module} may not import {target}, which is not in a row above it"
    if not item.lazy and target in ROWS[ROW_OF[module]].lazy_rows:
        return f"line {item.line}: {module} may not import {target} at module level"
    return ""


def top_module(path: Path) -> str:
    """Return the top-level module or package that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_rows_above(path: Path) -> None:
    """Every source file obeys the table."""
    assert violations(top_module(path), path.read_text()) == []


def test_every_row_is_used() -> None:
    """The table names no module that does not exist: a row that nothing matches enforces nothing."""
    existing = {top_module(path) for path in SOURCES} | {"_native"}
    assert set(ROW_OF) - existing == set()


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("cache", "import torch", "cache may not import torch"),
        ("cache", "def f():\n    import torch", "cache may not import torch"),
        ("config", "from rolltree.cache import RolloutCache", "config may not import cache"),
        ("config", "from rolltree import cache", "config may not import cache"),
        ("config", "if TYPE_CHECKING:\n    import rolltree.engine", "config may not import engine"),
        ("budget", "import rolltree.cache", "budget may not import cache"),
        ("sampling", "import transformers", "sampling may not import transformers"),
        ("engine", "class A:\n    from trl import GRPOTrainer", "engine may not import trl"),
        ("engine", "try:\n    import trl\nexcept ImportError:\n    pass", "engine may not import trl"),
        ("cli", "import torch", "cli may not import torch at module level"),
        ("cli", "from rolltree.engine import Engine", "cli may not import engine at module level"),
        ("cache", "from . import errors", "relative import"),
        ("engine", "from rolltree import RolloutCache", "engine may not import __init__"),
        ("novelty", "", "novelty is in no row"),
    ],
)
def test_planted_violation_is_found(module: str, source: str, message: str) -> None:
    """The checker sees every way to break the table."""
    assert [message in text for text in violations(module, source)] == [True]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine", "import numpy.typing\nfrom torch import nn\nfrom rolltree.engine.running import Rows"),
        ("cli", "def f():\n    import torch\n    from rolltree.engine import Engine"),
        ("cli", "from rolltree import __version__\nfrom rolltree.demo import run"),
        ("__init__", "if TYPE_CHECKING:\n    from rolltree.engine import Engine"),
    ],
)
def test_allowed_imports_pass(module: str, source: str) -> None:
    """The checker lets through what the table allows."""
    assert violations(module, source) == []


KNOWN_CIRCLES: frozenset[frozenset[str]] = frozenset()
"""Modules that import one another, directly or not, and are still to be told apart."""


def module_of(path: Path) -> str:
    """Return the dotted name of a source file."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, known: set[str]) -> set[str]:
    """Return our own modules that a file imports outside of functions, those under TYPE_CHECKING included."""
    found: set[str] = set()
    for node in module_level(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif node.module is not None:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & known) or {node.module}
    return (found & known) - {module_of(path)}


def module_level(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that are in no function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from module_level(node)


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the sets of modules that reach one another, two or more each."""
    reach = {start: reachable(graph, start) for start in graph}
    return {
        frozenset(circle)
        for start in graph
        if len(circle := {start, *(other for other in reach[start] if start in reach[other])}) > 1
    }


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return every module that `start` imports, directly or not."""
    found, ahead = set[str](), list(graph[start])
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += graph[name]
    return found


def test_no_modules_import_one_another() -> None:
    """A reader can start anywhere and go down: no import, of a type either, leads back to where it came from."""
    known = {module_of(path) for path in SOURCES} | {"rolltree._native"}
    found = circles({"rolltree._native": set(), **{module_of(path): imported(path, known) for path in SOURCES}})
    assert found == KNOWN_CIRCLES, [sorted(circle) for circle in found ^ KNOWN_CIRCLES]


def test_a_planted_circle_is_found() -> None:
    """Over three modules, one of the imports for types alone; what a function imports is no part of it."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == {frozenset("abc")}
    lines = "if TYPE_CHECKING:\n    from rolltree.budget import CostModel\ndef f():\n    import rolltree.cache"
    assert [ast.unparse(node) for node in module_level(ast.parse(lines))] == ["from rolltree.budget import CostModel"]
