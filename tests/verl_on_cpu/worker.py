"""vLLM worker extension of CPU runs: verl's own, on layers that keep their weights, taking copies of what arrives.

verl sends new weights through a shared buffer that it re-uses. On a GPU `.to(device)` copies them out; on a CPU it is
the same memory, so the parameters would change under the model.
"""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from tests.verl_on_cpu import compat

compat.apply_to_vllm()


class CpuWorkerExtension(vLLMColocateWorkerExtension):  # type: ignore[misc, unused-ignore]
    """`engine_kwargs.vllm.worker_extension_cls=tests.verl_on_cpu.worker.CpuWorkerExtension`."""

    def _update_weights(self, weights: list[tuple[str, Any]], peft_config: Any, base_sync_done: bool) -> None:
        super()._update_weights([(name, tensor.clone()) for name, tensor in weights], peft_config, base_sync_done)
