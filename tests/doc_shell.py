"""Checks shell commands without running them: our own command line parses them, targets, extras and scripts exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = {"cat", "curl", "tar", "python", "python3", "vllm", "bash", "git", "cd", "export"}
"""Commands of others; what they are given is checked where it is ours."""


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
    if program.startswith("python") and arguments[:1] == ["-m"]:
        return module_faults(arguments[1])
    checks = {"rolltree": cli_faults, "make": make_faults, "pip": pip_faults}
    if program in checks:
        return checks[program](arguments)
    return [] if "/" in name or program in NOT_OURS else [f"{name}: a command that nothing checks"]


def module_faults(module: str) -> list[str]:
    """A module of the checkout, which `python -m` runs, must be there; others are none of our business."""
    path = ROOT / module.replace(".", "/")
    ours = (ROOT / module.split(".")[0]).is_dir()
    return (
        [f"python -m {module}: no such module"]
        if ours and not (path.is_dir() or path.with_suffix(".py").exists())
        else []
    )


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
    text = (ROOT / "Makefile").read_text()
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
    project = (ROOT / "pyproject.toml").read_text()
    section = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", project, re.DOTALL | re.MULTILINE)
    assert section is not None
    extras = set(re.findall(r"^([\w-]+) = ", section[1], re.MULTILINE))
    named = {name.strip() for word in arguments for part in re.findall(r"\[(.*?)\]", word) for name in part.split(",")}
    return [f"pip install: there is no extra {name}" for name in sorted(named - extras)]
