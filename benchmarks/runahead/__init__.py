"""What run-ahead gains or costs in a first epoch, in which no training step repeats a prompt.

`python -m benchmarks.runahead run`: the built-in engine and the demo's model, by the clock: ../runahead.json.
`python -m benchmarks.runahead replay`: a simulated engine over recorded rollouts, under cost profiles:
../runahead_replay.json. docs/run-ahead.md shows both, with the command lines. The modes:

- `none`: no drafts.
- `cold`: drafts from siblings and from the tree that all prompts share. What run-ahead is compared with.
- `ahead`: the same, and idle rows generate prompts of the next step, with other seeds.
- `ahead-noise`: with the seeds of the next step's requests (coupled noise): the same text as far as the policy stays.
- `forced`, `forced-noise`: the same two, whether run-ahead is expected to pay or not: what the controller spares.
- `history`: as `cold`, but an earlier epoch of these prompts is remembered (their samples, other seeds).

A recording has no noise to couple, so there the modes with `-noise` are missing. The first step pays for run-ahead and
gains nothing by it; the last one gains and pays nothing.
"""
