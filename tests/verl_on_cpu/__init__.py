"""Stand-ins for what verl's real trainer lacks on a CPU: for the tests and `make verl-demo`, not to train models.

Nothing here is used on GPUs and nothing changes verl's files. `settings` makes the command line and the variables of a
run, `platform` tells verl what a CPU is, `compat` holds the patches, `worker` lets vLLM's CPU build take new weights,
`assets` writes a tiny trained model with its data, `calculator` is the tool of the multi-turn runs, `run` starts and
reads a run, `demo` two beside each other. Processes of verl, Ray and vLLM import these modules by name: `environment`
puts the checkout on their PYTHONPATH.
"""
