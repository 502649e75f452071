"""Measurements that are no part of the wheel: `make gpu-bench`, `make vllm-bench`, `python -m benchmarks.runahead`; the
results lie beside."""
