"""Every place where vLLM's V1 sampler is reached into, for engines with `coupled`; the sister of `compat`.

| What | Why | Without it |
|---|---|---|
| `GPUModelRunner._sample` | around it, the two below draw by the requests' noise | `coupled` is refused |
| `TopKTopPSampler.forward`, `apply_top_k_top_p` | draws rows without drafts and the token behind drafts | likewise |
| `rejection_sampler.rejection_sample` | verifies drafts | likewise |
| `gumbel_sample` of the V2 runner (not on a CPU) | the noise, on the device | likewise |

Installed in processes whose engine asks for `coupled`, and each is checked by signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rolltree.vllm import compat
from rolltree.vllm.compat import HookMissing, wrap

VERIFY = (
    "draft_token_ids", "num_draft_tokens", "max_spec_len", "cu_num_draft_tokens", "draft_probs", "target_logits",
    "bonus_token_ids", "sampling_metadata",
)  # fmt: skip
NOISE = ("logits", "expanded_idx_mapping", "temperature", "seed", "pos", "apply_temperature")


def couple() -> None:
    """Let V1 runners whose proposer is coupled draw by the requests' noise.

    Raises:
        HookMissing: this vLLM draws in another way.

    """
    from vllm.v1.sample import rejection_sampler
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _look(rejection_sampler, "rejection_sample", VERIFY)
    _look(topk_topp_sampler, "apply_top_k_top_p", ("logits", "k", "p"))
    _look(topk_topp_sampler.TopKTopPSampler, "forward_native", ("self", "logits", "generators", "k", "p"))
    if not compat.is_cpu():
        from vllm.v1.worker.gpu.sample import gumbel

        _look(gumbel, "gumbel_sample", NOISE)

    def make(original: Any) -> Callable[..., Any]:
        def _sample(self: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
            draws = getattr(getattr(self, "drafter", None), "rolltree_draws", lambda: None)()
            if draws is None:
                return original(self, logits, *args, **kwargs)
            from rolltree.vllm import coupled_v1

            # Of no use here, and vLLM rewinds them where a prompt is read in parts, which those of a CPU cannot.
            self.input_batch.generators.clear()
            with coupled_v1.engaged(self.sampler, draws):
                return original(self, logits, *args, **kwargs)

        return _sample

    wrap(GPUModelRunner, "_sample", make, "logits", "spec_decode_metadata")


def _look(owner: Any, name: str, parameters: tuple[str, ...]) -> None:
    found = getattr(owner, name, None)
    taken = () if found is None else tuple(inspect.signature(found).parameters)
    if taken[: len(parameters)] != parameters:
        raise HookMissing(f"{owner.__name__}.{name} takes ({', '.join(taken)}), not ({', '.join(parameters)})")
