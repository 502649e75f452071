"""Rollout speed in real vLLM by drafter: `python -m benchmarks.vllm` (`make vllm-bench`, docs/vllm.md)."""
