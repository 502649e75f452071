"""The drafters that a replay compares, all behind `rolltree.types.Drafter`, by name."""

from rolltree.replay.drafters.base import ReplayDrafter
from rolltree.replay.drafters.names import DRAFTERS, DrafterSpec, Limits, parse_drafters

__all__ = ["DRAFTERS", "DrafterSpec", "Limits", "ReplayDrafter", "parse_drafters"]
