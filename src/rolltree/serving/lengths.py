"""How long the drafts of a step may be, where the host has a say in it: its graphs, its own budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rolltree.budget import CostModel
from rolltree.types import Float32Array, Int32Array, Int64Array

WAYS = ("auto", "ragged", "uniform")
"""Of the option `lengths`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """The drafts of one step before they are cut, of the A requests that have any to hope for.

    The arrays are views that stay valid during the call.
    """

    survival: Float32Array
    """Shape [A, K], falling along each row; undefined past `lengths`."""
    lengths: Int32Array
    """Shape [A]: tokens drafted."""
    asked: Int64Array
    """Shape [A]: their places among the requests that were asked for."""
    rows: int
    """Requests that were asked for, with drafts or without."""
    room: int
    """Tokens that the step can take beside one for each request."""
    cost: CostModel | None
    """None: every draft is to be verified."""


class LengthRule(Protocol):
    """Takes the place of the budget of `TreeDrafter`."""

    def cut(self, drafted: Drafted) -> Int32Array:
        """Return the lengths to verify, int32 [A], at most as long."""
