"""One setting of a drafter as it is written behind the drafter's name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rolltree.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Option:
    """What kind of value, and the least one allowed."""

    kind: type
    least: float = -math.inf
    choices: tuple[str, ...] = ()

    def read(self, text: str, value: str) -> Any:
        """Return the value of an option of the drafter that was written as `text`.

        Raises:
            InvalidInputError: another kind of value, or too small.

        """
        if value in self.choices:
            return value
        if self.kind is bool and value in ("true", "false"):
            return value == "true"
        try:
            number = self.kind(value) if self.kind in (int, float) else math.nan
        except ValueError:
            number = math.nan
        if not number >= self.least:
            raise InvalidInputError("--drafter", text, self._wanted(), f"{value!r} is not.")
        return number

    def _wanted(self) -> str:
        if self.kind not in (int, float):
            return f"with {' or '.join(self.choices or ('true', 'false'))} there"
        kind = "whole number" if self.kind is int else "number"
        return f"with a {kind}{f' from {self.least:g}' if self.least > -math.inf else ''} there"
