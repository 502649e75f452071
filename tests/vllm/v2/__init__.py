"""What vLLM's V2 model runner needs to run on a CPU without triton: stand-ins for tests, and for nothing else."""
