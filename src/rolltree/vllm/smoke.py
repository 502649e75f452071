"""Proves that drafts flow through the installed vLLM: a tiny model with random weights, twice the same prompt.

`python -m rolltree.vllm.smoke` prints one JSON line; with `--switch` it starts no engine and says whether one whose
arguments name no speculation would draft here. `rolltree doctor` runs it in a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


ARGUMENTS = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 128,
    "max_num_seqs": 4,
    "gpu_memory_utilization": 0.1,
    "additional_config": {"rolltree": {"cost": "off"}},
}
"""Of vLLM, for an engine with that model."""


def drafts_flow() -> dict[str, float]:
    """Generate one prompt greedily twice; return the counters, `accepted` among them."""
    from rolltree.vllm.control import Control
    from vllm import LLM, SamplingParams

    with _model() as folder:
        llm = LLM(folder, speculative_config=SPECULATION, **ARGUMENTS)
        sampling = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True, detokenize=False)
        for _ in range(2):
            llm.generate([{"prompt_token_ids": [1, 2, 3, 4]}], sampling, use_tqdm=False)
        return Control(llm).stats()


def switched_on() -> dict[str, Any]:
    """Configure an engine as a trainer would that knows nothing of speculation, and start none.

    Returns:
        `drafts`: draft tokens of a request and step that it would verify (0: rolltree is off); `missing`: hooks that
        this vLLM does not offer and drafting needs; `shortcomings`: what works less well.

    """
    from vllm.engine.arg_utils import EngineArgs

    from rolltree.vllm import compat, hooks

    with _model() as folder:
        config = EngineArgs(folder, **ARGUMENTS).create_engine_config()
    hooks.install((*hooks.FOR_ALL, *hooks.FOR_DRAFTING))
    missing = [
        hook.place for hook in (*hooks.FOR_ALL, *hooks.FOR_DRAFTING) if hook.needed and hook.install in hooks.FAILED
    ]
    on = compat.uses_rolltree(config)
    drafts = config.speculative_config.num_speculative_tokens if on else 0
    return {"drafts": drafts, "missing": missing, "shortcomings": hooks.shortcomings()}


@contextmanager
def _model() -> Iterator[str]:
    """A folder with the model, in an environment in which it starts fast."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        yield folder


if __name__ == "__main__":
    print(json.dumps(switched_on() if "--switch" in sys.argv[1:] else drafts_flow()))
