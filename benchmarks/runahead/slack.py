"""The controller of a mode, which also counts how much of the slack it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rolltree.runahead import EngineStep, RunAheadConfig, RunAheadController


class Slack(RunAheadController):
    """Decides as `mode` says: forced, by the settings, or not at all."""

    def __init__(self, mode: str, config: RunAheadConfig | None, slots: int) -> None:
        config = config or RunAheadConfig()
        if mode.startswith("forced"):
            config = replace(config, holdout=0, always=True)
        super().__init__(config if mode.startswith(("ahead", "forced")) else RunAheadConfig(budget_tokens=0))
        self.slots, self.idle_steps, self.used_steps, self.tail_cost = slots, 0, 0, 0.0

    def is_held_out(self, key: str) -> bool:
        """A property of the recording's own name of a prompt, so that the committed figures can be made again."""
        return super().is_held_out(key.removeprefix("user:"))

    def observe(self, step: EngineStep) -> None:
        """Take an engine step into account."""
        super().observe(step)
        self.idle_steps += max(0, self.slots - step.live_steps)
        self.used_steps += step.running_steps
        self.tail_cost += step.running_steps * step.row_seconds


def numbers(controls: Sequence[Slack], seconds: float) -> dict[str, Any]:
    """What run-ahead did in `seconds`, over all runs of a case."""
    idle, gauges = sum(c.idle_steps for c in controls), [c.gauges() for c in controls]
    return {
        "slack_row_steps": idle,
        "slack_used": sum(c.used_steps for c in controls) / idle if idle else 0.0,
        "tail_cost_share": sum(c.tail_cost for c in controls) / seconds,
        **{name: sum(g[name] for g in gauges) for name in ("launched", "prompts_used", "tokens_used")},
    }
