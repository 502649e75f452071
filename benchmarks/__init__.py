"""Measurements that are no part of the wheel: `make gpu-bench`, `make vllm-bench`; the results lie beside."""
