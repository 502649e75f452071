"""Looks up what a Python text names, without running it: imports, attributes, keyword arguments."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Collection, Iterator


class Names:
    """What the names of a page stand for, as far as they come from `packages`; an instance is known by its class."""

    def __init__(self, packages: Collection[str] = ("rolltree",)) -> None:
        self.packages = packages
        self.things: dict[str, object] = {}
        self.instances: dict[str, type] = {}

    def ours(self, thing: object) -> bool:
        return str(getattr(thing, "__module__", "")).split(".")[0] in self.packages

    def load(self, node: ast.ImportFrom) -> list[str]:
        """Take in `from package import names`."""
        module = node.module or ""
        if module.split(".")[0] not in self.packages:
            return []
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing = str(error.name).split(".")[0] in self.packages
            return [f"there is no module {error.name}"] if missing else []  # its host is not installed here
        absent = [alias.name for alias in node.names if not hasattr(loaded, alias.name)]
        self.things |= {a.asname or a.name: getattr(loaded, a.name) for a in node.names if a.name not in absent}
        return [f"{module} has no {name}" for name in absent]

    def callee(self, node: ast.Call) -> tuple[object, str]:
        """What is called, or None, and what is wrong with its name."""
        if isinstance(node.func, ast.Name):
            return self.things.get(node.func.id), ""
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            cls = self.instances.get(node.func.value.id)
            if cls is not None:
                return getattr(cls, node.func.attr, None), self.attribute(cls, node.func.attr)
        return None, ""

    def attribute(self, cls: type, name: str) -> str:
        known = hasattr(cls, name) or any(
            re.search(rf"\bself\.{name}\b", inspect.getsource(base)) for base in cls.__mro__ if self.ours(base)
        )
        return "" if known else f"{cls.__name__} has no {name}"


def python_faults(text: str, names: Names | None = None) -> list[str]:
    """What a Python text names that does not exist: imports, attributes, keyword arguments."""
    names = names or Names()
    try:
        compile(text, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        return [f"not Python: {error}"]
    return [fault for node in ast.parse(text).body for fault in _statement(node, names)]


def _statement(statement: ast.stmt, names: Names) -> Iterator[str]:
    for node in ast.walk(statement):
        if isinstance(node, ast.ImportFrom):
            yield from names.load(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names.instances:
            fault = names.attribute(names.instances[node.value.id], node.attr)
            yield from [fault] if fault else []
    for node in ast.walk(statement):
        if isinstance(node, ast.Call):
            yield from _call(node, names)
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
        made, _ = names.callee(statement.value)
        if isinstance(made, type) and isinstance(statement.targets[0], ast.Name):
            names.instances[statement.targets[0].id] = made


def _call(node: ast.Call, names: Names) -> Iterator[str]:
    called, _ = names.callee(node)
    if called is None or not callable(called) or not names.ours(called):
        return
    parameters = inspect.signature(called).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    allowed = {parameter.name for parameter in parameters}
    for keyword in node.keywords:
        if keyword.arg and keyword.arg not in allowed:
            yield f"{ast.unparse(node.func)} has no argument {keyword.arg}"
