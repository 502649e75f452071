"""What each rank generates in vLLM's V2 runner: run by test_ranks_v2.py in processes of its own.

`python -m tests.vllm.ranks_v2 external FOLDER` under torchrun: every rank schedules for itself. `... mp FOLDER`: one
scheduler, which starts the workers. Each process writes what it saw to FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.vllm.engines import preemptions
from tests.vllm.ranks import greedy, proposer_of, sampled, stats, two_ranks

Seen = dict[str, Any]
STAND_INS = "ROLLTREE_TESTS_V2"
"""Set where workers need what stands in for a GPU's kernels."""


def main(mode: str, folder: Path) -> None:
    """Run all that is to be seen in this mode."""
    os.environ[STAND_INS] = "1"
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    rank = int(os.environ.get("RANK", "0"))
    seen = external(rank) if mode == "external" else one_scheduler()
    (folder / f"{rank}.json").write_text(json.dumps(seen))


def one_scheduler() -> Seen:
    """Every rank runs a speculator; the second one's own drafts would be others. Coupled, async, one draft length."""
    options = {"coupled": True, "lengths": "uniform", "cost": "off"}
    with two_ranks("rolltree", "mp", runner="V2 async", options=options) as llm:
        with paused(llm):
            seen: Seen = {"right": greedy(llm), "sampled_right": sampled(llm)}
        llm.collective_rpc(watch_lengths)
        seen |= {"texts": [greedy(llm), greedy(llm)], "sampled": [sampled(llm), sampled(llm)]}
        seen |= {"stats": stats(llm), "ranks_that_draft": llm.collective_rpc(drafts_here)}
        return seen | {"lengths": llm.collective_rpc(lengths_seen)}


def watch_lengths(worker: Any) -> None:
    """Note the query lengths of each decode step that the rank's runner is given."""
    runner = worker.model_runner
    taken, runner.lengths_seen = runner.gather_batch_req_state, []

    def gather_batch_req_state(schedule: Any, *args: Any) -> Any:
        places, counts = schedule.scheduled_spec_decode_tokens, schedule.num_scheduled_tokens
        if all(n == 1 + len(places.get(id, ())) for id, n in counts.items()):
            runner.lengths_seen.append(sorted(set(counts.values())))
        return taken(schedule, *args)

    runner.gather_batch_req_state = gather_batch_req_state


def lengths_seen(worker: Any) -> list[list[int]]:
    """What was noted."""
    return list(worker.model_runner.lengths_seen)


def drafts_here(worker: Any) -> bool:
    """Whether this rank has trees."""
    return bool(worker.model_runner.speculator.core.counts.tokens)


def external(rank: int) -> Seen:
    """Every rank schedules for itself, by vLLM's own verification; faults are planted in one rank at a time."""
    tight = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "num_gpu_blocks_override": 10}
    with two_ranks("rolltree", "external_launcher", runner="V2", **tight) as llm:
        with paused(llm):
            seen: Seen = {"right": greedy(llm), "preemptions": preemptions(llm)}
        seen |= {"texts": [greedy(llm), greedy(llm)], "stats": stats(llm)}
        seen["sampled"] = [sampled(llm), sampled(llm)]
        for one in (0, 1):
            for name, fault in FAULTS.items():
                seen[f"{name} {one}"] = with_fault(llm, fault, here=rank == one)
        return seen


def with_fault(llm: Any, fault: Any, *, here: bool) -> Seen:
    """Greedy text with a fault on one rank, and what was drafted meanwhile and afterwards."""
    before = stats(llm)
    if here:
        with fault(llm):
            texts = greedy(llm)
    else:
        texts = greedy(llm)
    meanwhile = stats(llm)
    texts_after = greedy(llm)
    names = ("drafted", "accepted", "errors")
    return {
        "texts": [texts, texts_after],
        "meanwhile": {name: meanwhile[name] - before[name] for name in names},
        "after": {name: stats(llm)[name] - meanwhile[name] for name in names},
    }


@contextmanager
def paused(llm: Any) -> Iterator[None]:
    """Drafting is off for the duration of the block."""
    from rolltree.vllm import Control

    Control(llm).pause()
    try:
        yield
    finally:
        Control(llm).resume()


@contextmanager
def raising(holder: Any, name: str) -> Iterator[None]:
    """A method fails at its fourth call."""
    original, calls = getattr(holder, name), iter(range(10**6))

    def failing(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 3:
            raise RuntimeError("planted")
        return original(*arguments, **named)

    setattr(holder, name, failing)
    try:
        yield
    finally:
        delattr(holder, name)


@contextmanager
def other_drafts(llm: Any) -> Iterator[None]:
    """This rank would draft something else."""
    core = proposer_of(llm)
    original = core.draft
    core.draft = lambda *args, **named: [[(t + 1) % 7 for t in row] for row in original(*args, **named)]
    try:
        yield
    finally:
        del core.draft


def speculator(llm: Any) -> Any:
    """The speculator of an engine in this process."""
    from tests.vllm.engines import model_runner

    return model_runner(llm).speculator


FAULTS = {
    "paused": paused,
    "failed in the trees": lambda llm: raising(proposer_of(llm).drafter, "advance"),
    "failed in the begin": lambda llm: raising(proposer_of(llm), "begin_step"),
    "failed in the counters": lambda llm: raising(speculator(llm)._board, "write"),
    "failed in the read": lambda llm: raising(speculator(llm)._rows, "read"),
    "other drafts": other_drafts,
}


if __name__ == "__mp_main__" and STAND_INS in os.environ:  # a spawned worker has nothing of its parent's
    from tests.vllm.v2.no_triton import v2_on_cpu

    in_place = v2_on_cpu(async_scheduling=False)  # kept: it would end with its last reference
    in_place.__enter__()
if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
