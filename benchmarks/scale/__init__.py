"""What memory buys at the size of a real training: `python -m benchmarks.scale run` and `model`.

`run` generates epochs of a large prompt set in the replay's simulated engine, with text made from recorded rollouts
(`workload`), and compares a cache that holds everything with one of a fixed capacity, with a store and without.
`model` works out from measured figures what a training on many GPUs needs, and writes the tables of docs/scale.md.
"""
