"""Replay of recorded rollouts: what a drafter would have saved, without a model and without a GPU.

`reading` -> `records` -> `simulator` (one loop: schedule, draft, verify against the record, advance, cost) ->
`tally` -> `results` -> `run` (cases, baseline, ceiling, the document). Deterministic: simulated seconds come from a
step-cost profile, never from the clock; measured drafting time is reported beside them.
"""
