"""Tests in real vLLM: only in its environment (`make vllm-test`), one engine at a time, each in this process."""

from __future__ import annotations

import os
from importlib.util import find_spec

FAST = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    for name, value in FAST.items():
        os.environ.setdefault(name, value)
    from tests.vllm.plain import fixture_greedy, fixture_sampled  # noqa: F401
