"""All that is to be known of one device, by one command: `python -m benchmarks.gpu` (`make gpu-bench`, docs/gpu.md)."""
