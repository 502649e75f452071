"""Proves that drafts flow through the installed vLLM: a tiny model with random weights, twice the same prompt.

`python -m rolltree.vllm.smoke` prints one JSON line; `rolltree doctor` runs it in a process of its own.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

SIZE = 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": SIZE,
    "intermediate_size": 2 * SIZE,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": SIZE,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}
"""A model that every vLLM runs; its weights are dummies."""
SPECULATION = {"method": "custom_class", "model": "rolltree.vllm.Proposer", "num_speculative_tokens": 4}
DEFAULTS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def drafts_flow() -> dict[str, float]:
    """Generate one prompt greedily twice; return the counters, `accepted` among them."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from rolltree.vllm.control import Control
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        llm = LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            dtype="float32",
            max_model_len=128,
            max_num_seqs=4,
            gpu_memory_utilization=0.1,
            speculative_config={
                "method": "custom_class",
                "model": "rolltree.vllm.Proposer",
                "num_speculative_tokens": 4,
            },
            additional_config={"rolltree": {"cost": "off"}},
        )
        sampling = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True, detokenize=False)
        for _ in range(2):
            llm.generate([{"prompt_token_ids": [1, 2, 3, 4]}], sampling, use_tqdm=False)
        return Control(llm).stats()


if __name__ == "__main__":
    print(json.dumps(drafts_flow()))
