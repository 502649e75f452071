"""Settings of the built-in engine. Holds no behaviour beyond checking that the values make sense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from rolltree.errors import InvalidInputError
from rolltree.tokens import check_whole

Rule = Literal["coupled", "one-hot"]
_LIMITS = {
    "slots": (1, 2**31 - 1),
    "max_length": (2, 2**31 - 1),
    "max_draft": (0, 1024),
    "prefill_tokens": (1, 2**31 - 1),
    "sample_elements": (1, 2**63 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How many requests run at once, how far they may grow, and how drafts are verified."""

    slots: int = 32
    """Requests decoded together; each owns one row of the KV cache."""
    max_length: int | None = None
    """Prompt and generated tokens of one request; None takes the model's context, at most 4096."""
    max_draft: int = 16
    """Draft nodes per request and step, above what the drafter's own limits allow."""
    rule: Rule = "coupled"
    """Acceptance rule: "coupled" noise (same seed, same rollout) or "one-hot" rejection (same distribution).
    """
    tie_margin: float | None = None
    """Perturbed scores closer than this are decided by a plain one-row forward; None: 1e-4 in float32, else
    0.
    """
    prefill_tokens: int = 4096
    """Prompt tokens of one prefill forward; longer prompts are filled in pieces."""
    sample_elements: int = 1 << 26
    """Logits (tokens x vocabulary) sampled at once; bounds the memory of the sampler's float32 copies."""
    compile: bool = False
    """Compile the sampler (torch.compile, up to a minute at first use): meant for CUDA, where the noise written out
    costs more than a small model. Plain temperature sampling only; other batches are sampled as ever."""
    learn_cost: bool = False
    """Learn the step cost from the steps as they run, and give it to the drafter; drafts then depend on the clock
    (rollouts under the coupled rule do not). False keeps the drafter's frozen model: measured once, or none."""

    def __post_init__(self) -> None:
        """Raise InvalidInputError naming the first field that is out of range."""
        for name, (low, high) in _LIMITS.items():
            if name != "max_length" or self.max_length is not None:
                check_whole(f"engine.{name}", getattr(self, name), low, high)
        for name in ("compile", "learn_cost"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(f"engine.{name}", getattr(self, name), "True or False")
        if self.rule not in get_args(Rule):
            raise InvalidInputError("engine.rule", self.rule, f"one of {get_args(Rule)}")
        margin = self.tie_margin
        if margin is not None and not (type(margin) in (int, float) and 0 <= margin < 1):
            raise InvalidInputError("engine.tie_margin", margin, "None or a number in [0, 1)")
