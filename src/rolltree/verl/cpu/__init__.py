"""What verl's real trainer needs to run on a CPU: for tests, `make verl-demo` and a first look, not to train models.

Nothing here is used on GPUs and nothing changes verl's files. `settings` makes the command line and the variables of a
run, `platform` tells verl what a CPU is, `compat` holds the patches, `worker` lets vLLM's CPU build take new weights,
`assets` writes a tiny trained model with its data, `calculator` is the tool of the multi-turn runs, `run` starts and
reads a run.
"""
