"""The switch: `ROLLTREE_DRAFT=16` lets engines draft whose arguments say nothing of it.

For programs that build an engine's arguments from fixed fields. Reads the environment and says whom it is meant for;
turning drafts on is the host's business. Loads the standard library only: it runs in engines that did not ask, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rolltree.errors import InvalidInputError

PREFIX = "ROLLTREE_"
DRAFT, MODEL = f"{PREFIX}DRAFT", f"{PREFIX}DRAFT_MODEL"
NAMES = (DRAFT, MODEL)
MISSPELT = 0.85
"""Likeness from which a variable that begins with `PREFIX` is a misspelt one of ours: others have such names, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """What the environment asks for."""

    width: int
    """Draft tokens of a request and step."""
    model: str = "*"
    """Pattern (`*`, `?`, `[...]`) of the models that it is meant for."""

    @classmethod
    def read(cls, environment: Mapping[str, str], *, largest: int) -> Switch | None:
        """Return what is asked for; None: nothing.

        Args:
            environment: variables.
            largest: draft tokens of a request that the host verifies at most.

        Raises:
            InvalidInputError: a value that is no number from 0 to `largest`, or a misspelt name.

        """
        ours = [name for name in environment if name.startswith(PREFIX)]
        for name in ours:
            if name not in NAMES and (near := meant(name, NAMES)):
                fix = f"Did you mean {near!r}?"
                raise InvalidInputError(f"environment.{name}", environment[name], "left out", fix)
        text = environment.get(DRAFT, "").strip()
        is_number = text.isascii() and text.isdecimal() and len(text) < len(str(largest)) + 3
        if text and not (is_number and int(text) <= largest):
            allowed = f"a number of draft tokens from 0 (nothing) to {largest}"
            raise InvalidInputError(DRAFT, environment[DRAFT], allowed)
        return cls(width=int(text), model=environment.get(MODEL, "").strip() or "*") if int(text or 0) else None

    def is_for(self, names: Iterable[str]) -> bool:
        """Return whether one of a model's names, or the last part of one, fits the pattern."""
        every = [part for name in names for part in (name, name.rstrip("/").rpartition("/")[2])]
        return any(fnmatchcase(name, self.model) for name in every)

    def __str__(self) -> str:
        return f"{DRAFT}={self.width}"


def meant(name: str, known: Iterable[str]) -> str:
    """Return which of the known variables is nearly spelt like `name`; empty: none."""
    names = {one.removeprefix(PREFIX).lower(): one for one in known}
    near = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), names, n=1, cutoff=MISSPELT)
    return names[near[0]] if near else ""
