"""What other engines generate drafts here: replicas of one policy see each other's rollouts, finished and running.

`Port` is an engine's side, on the engine's own thread; `Exchange` is where engines meet, once a cluster; `Courier` goes
between them in a thread, by a channel (`child`: a process that speaks to Ray). Text of others only ever becomes drafts,
which the policy verifies: nothing here can change a rollout, and whatever fails costs drafts, never a step.
Importing this package loads no Ray.
"""
