"""vLLM's adaptive verification with our drafts: it decides how many are verified, by the chances that we give it.

`enable_adaptive_verification` in `speculative_config` asks for it (vLLM 0.32, V2 runner). vLLM measures what steps of
each size cost when it captures its graphs, and keeps the drafts with the best chances; graphs of varying query lengths
replay what is left. So rolltree's own budget is off: nothing is cut here, and no step cost is learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rolltree.errors import InvalidInputError
from rolltree.serving.lengths import Drafted
from rolltree.types import Float32Array, Int32Array
from rolltree.vllm.step_drafts import StepDrafts

if TYPE_CHECKING:
    from rolltree.serving.options import EngineOptions

NAME = "speculative_config.enable_adaptive_verification"


def is_adaptive(vllm_config: Any) -> bool:
    """Return whether the engine is to verify adaptively; a vLLM without it never does."""
    return bool(getattr(vllm_config.speculative_config, "enable_adaptive_verification", False))


def check(vllm_config: Any, options: EngineOptions, *, is_v2: bool, where: str) -> None:
    """Raise InvalidInputError where adaptive verification cannot work with our drafts.

    vLLM itself refuses LoRA, pipeline parallelism, and attention backends whose graphs have fixed query lengths.

    Args:
        vllm_config: vLLM's configuration.
        options: what the user set for rolltree.
        is_v2: whether the engine has the V2 runner.
        where: what the user calls the options, for errors.

    """
    if not is_v2:
        fix = "Set VLLM_USE_V2_MODEL_RUNNER=1, or leave it off."
        raise InvalidInputError(NAME, True, "false with the V1 model runner", fix)
    mode = vllm_config.compilation_config.cudagraph_mode
    if not mode.has_full_cudagraphs():
        fix = (
            "It replays graphs of varying query lengths: use a GPU, without enforce_eager, and compilation_config "
            "cudagraph_mode FULL_AND_PIECEWISE; or leave it off."
        )
        raise InvalidInputError(NAME, True, f"false with cudagraph_mode {mode.name}", fix)
    if options.lengths != "auto":
        fix = "Leave `lengths` out, or adaptive verification off."
        raise InvalidInputError(f"{where}.lengths", options.lengths, "auto with adaptive verification", fix)


def conditional(survival: Float32Array, lengths: Int32Array) -> Float32Array:
    """Return the chance that each token is accepted if those before it are, float32 [B, K].

    Args:
        survival: float32 [B, K], falling along each row; entries past `lengths` are ignored.
        lengths: int32 [B]. Behind a draft the chance is 0.

    """
    before = np.ones_like(survival)
    before[:, 1:] = survival[:, :-1]
    drafted = np.arange(survival.shape[1]) < lengths[:, None]
    chance = np.divide(survival, before, out=np.zeros_like(survival), where=drafted & (before > 0))
    return chance.clip(0.0, 1.0)


class Confidences:
    """Cuts nothing, and keeps the chances of the last drafts; a `LengthRule`."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._chances: Float32Array = np.zeros((0, 0), np.float32)  # [requests asked for, K]

    def begin(self, rows: list[int]) -> None:
        """Note which rows of the step are asked for drafts, in order."""
        self._rows, self._chances = rows, np.zeros((0, 0), np.float32)

    def cut(self, drafted: Drafted) -> Int32Array:
        """Return the lengths as they are."""
        self._chances = np.zeros((drafted.rows, drafted.survival.shape[1]), np.float32)
        self._chances[drafted.asked] = conditional(drafted.survival, drafted.lengths)
        return drafted.lengths.copy()

    def write(self, drafts: StepDrafts) -> None:
        """Put the chances beside the drafts, 0 behind those."""
        for row, chances in zip(self._rows, self._chances, strict=False):
            count = drafts.counts[row]
            drafts.confidences[row, :count] = chances[:count]
