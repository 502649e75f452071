"""What run-ahead gains or costs on a device: `benchmarks.runahead.engine.run_ahead` with the real models.

The controller decides by the clock here, as it does in a training; rollouts do not depend on what it decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from benchmarks.gpu.text import smollm2_workload
from benchmarks.runahead.engine import Policy, Regime, Tail, run_ahead
from benchmarks.runahead.policy import demo_policy
from rolltree.budget import CostModel

MODES = ("cold", "ahead", "ahead-noise", "forced")
LARGEST = 128  # rows: a larger batch is full of its own requests


def measure_run_ahead(
    name: str, model: PreTrainedModel, *, batches: Sequence[int], samples: int, steps: int, repeats: int,
    tails: Sequence[Tail], cost: CostModel | None, progress: Any = lambda case: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The cases of `run_ahead` at each batch that holds a prompt's samples and is not above LARGEST.

    Where there is none, the samples of one prompt are the batch.
    """
    slots = [b - b % samples for b in batches if samples <= b <= LARGEST] or [samples]
    regimes = [Regime(slots=n, tail=tail, samples=samples) for n in dict.fromkeys(slots) for tail in tails]
    made = policy(name, model, prompts=steps * repeats * max(slots) // samples)
    found: Any = run_ahead(made, regimes, steps=steps, repeats=repeats, modes=MODES, cost=cost, progress=progress)
    return [{**case, "model": name} for case in found["cases"]]


def policy(name: str, model: PreTrainedModel, *, prompts: int) -> Policy:
    """Prompts that no step repeats, and the model as it is."""
    if name == "demo":
        return replace(demo_policy(prompts=prompts), model=model)
    made = smollm2_workload(model, samples=1, prompts=prompts)
    return Policy(
        name=name, model=model, prompts=made.prompts, max_tokens=made.max_tokens, stop_token_ids=made.stop_token_ids
    )
