"""Checks what the documentation shows: fenced blocks, and commands and calls in the running text.

A fence says what is done with its block: nothing after the language, and a Python block is run (blocks of a page share
their names), a shell block's commands are parsed, JSON and YAML are read. ```python check: REASON: names and keywords
are looked up, nothing runs. ```LANGUAGE skip: REASON: it is left alone. Nothing here runs a command.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w+)[ ]?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
NOT_OURS = {"curl", "tar", "python", "vllm", "bash", "git", "cd"}
"""Commands of others; what they are given is checked where it is ours."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    note: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def skipped(self) -> bool:
        return self.note.startswith("skip: ")


def page_text(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The fenced blocks of a page that name a language."""
    text = page_text(page) if text is None else text
    return [Block(page, text.count("\n", 0, m.start()) + 2, *m.groups()) for m in FENCE.finditer(text)]


def prose(page: str, text: str | None = None) -> list[str]:
    """The inline code of a page, outside its blocks."""
    found = INLINE.findall(FENCE.sub("", page_text(page) if text is None else text))
    return [re.sub(r"\s+", " ", code) for code in found]


def faults(block: Block, names: Names | None = None) -> list[str]:
    """What is wrong with a block, without running it."""
    if block.skipped:
        return []
    if block.note and not re.match(r"check: \w", block.note):
        return [f"{block.place}: the fence says {block.note!r}; say 'check: REASON' or 'skip: REASON'"]
    found: dict[str, Any] = {"python": python_faults, "sh": shell_faults, "json": json_faults, "yaml": yaml_faults}
    if block.language not in found:
        return [f"{block.place}: a block of {block.language!r}, which nothing checks"]
    told = found[block.language](block.text, names) if block.language == "python" else found[block.language](block.text)
    return [f"{block.place}: {fault}" for fault in told]


# shell


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell text, assignments in front left out."""
    pending = ""
    for line in text.splitlines(keepends=True):
        pending += line
        try:
            tokens = shlex.shlex(pending.replace("\\\n", " "), posix=True, punctuation_chars=True)
            tokens.whitespace_split = True
            words = list(tokens)
        except ValueError:  # a quotation goes on in the next line
            continue
        if pending.endswith("\\\n"):
            continue
        pending = ""
        yield from _simple(words)
    if pending.strip():
        raise ValueError(f"ends in the midst of a command: {pending!r}")


def _simple(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set(";&|"):
            if command:
                yield command
            command = []
        elif command or not re.match(r"[A-Za-z_]\w*=", word):
            command.append(word)


def shell_faults(text: str) -> list[str]:
    try:
        found = list(commands(text))
    except ValueError as error:
        return [str(error)]
    return [fault for command in found for fault in command_faults(command)]


def command_faults(command: list[str]) -> list[str]:
    name, *arguments = command
    if "/" in name and name.startswith(("scripts/", ".ci/", "examples/")) and not (ROOT / name).exists():
        return [f"{name} does not exist"]
    program = name.rsplit("/", 1)[-1]
    checks = {"rolltree": cli_faults, "make": make_faults, "pip": pip_faults}
    if program in checks:
        return checks[program](arguments)
    return [] if "/" in name or program in NOT_OURS else [f"{name}: a command that nothing checks"]


def cli_faults(arguments: list[str]) -> list[str]:
    """Parse the arguments of `rolltree` by its own command line, which does not run."""
    from typer.main import get_command

    from rolltree.cli.app import app

    command: Any = get_command(app)
    rest = list(arguments)
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return [f"rolltree {' '.join(arguments)}: no such command"]
        command = command.commands[rest.pop(0)]
    try:
        command.make_context("rolltree", rest)
    except Exception as error:
        return [f"rolltree {' '.join(arguments)}: {error}"]
    return []


def cli_options(command: Any = None) -> set[str]:
    """The options of all commands of `rolltree`."""
    from typer.main import get_command

    from rolltree.cli.app import app

    command = command or get_command(app)
    own = {"--help", *(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))}
    return own.union(*(cli_options(sub) for sub in getattr(command, "commands", {}).values()))


def make_faults(arguments: list[str]) -> list[str]:
    """Look up the targets, and parse ARGS where the target hands them to `rolltree`."""
    text = page_text("Makefile")
    targets = [word for word in arguments if "=" not in word]
    extra = [word.removeprefix("ARGS=") for word in arguments if word.startswith("ARGS=")]
    found = []
    for target in targets:
        recipe = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", text, re.MULTILINE)
        if recipe is None:
            found.append(f"make {target}: no such target")
        elif (line := re.search(r"^\t\S+/rolltree (.*)\$\(ARGS\)", recipe[1], re.MULTILINE)) and extra:
            found += cli_faults(shlex.split(re.sub(r"\$\(\w+\)", "", line[1]) + extra[0]))
    return found


def pip_faults(arguments: list[str]) -> list[str]:
    section = re.search(
        r"^\[project\.optional-dependencies\]\n(.*?)^\[", page_text("pyproject.toml"), re.DOTALL | re.MULTILINE
    )
    assert section is not None
    extras = set(re.findall(r"^([\w-]+) = ", section[1], re.MULTILINE))
    named = {name.strip() for word in arguments for part in re.findall(r"\[(.*?)\]", word) for name in part.split(",")}
    return [f"pip install: there is no extra {name}" for name in sorted(named - extras)]


# data


def json_faults(text: str) -> list[str]:
    try:
        json.loads(text)
    except ValueError as error:
        return [f"not JSON: {error}"]
    return []


def yaml_faults(text: str) -> list[str]:
    import yaml

    try:
        yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    return []


# Python


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
