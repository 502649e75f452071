"""What each rank of a tensor-parallel engine generates: run by test_ranks.py in processes of its own.

`python -m tests.vllm.ranks external FOLDER` under torchrun: every rank schedules for itself. `... mp FOLDER`: one
scheduler, which starts the workers. Each process writes what it saw to FOLDER/RANK.json.

The clock of every rank is a made-up one of its own, so that what is learned from it depends neither on the machine nor
on its load, and differs between ranks.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

COUNT, LONGEST = 6, 60
FROZEN = {"base": 1e-2, "token": 1e-5}


def main(mode: str, folder: Path) -> None:
    """Run all that is to be seen in this mode."""
    rank = int(os.environ.get("RANK", "0"))
    (folder / "cost.json").write_text(json.dumps(FROZEN))
    seen = external(rank, folder) if mode == "external" else ordinary(folder)
    (folder / f"{rank}.json").write_text(json.dumps(seen))


def external(rank: int, folder: Path) -> dict[str, Any]:
    """Generate without speculation, with it, and with faults planted in one rank."""
    from rolltree.vllm import Control

    # One beside the other: ending an engine ends the process group, and torchrun's store gives it once.
    with two_ranks("none", "external_launcher") as plain, two_ranks("rolltree", "external_launcher") as llm:
        lines = listen()
        seen = {"right": greedy(plain), "sampled_right": sampled(plain)}
        seen |= learned_and_frozen(llm, folder)
        seen["sampled"] = [sampled(llm), sampled(llm)]
        seen["paused_by_one"] = paused_by_one(llm, rank)
        seen["failed_once"] = failed_once(llm, rank)
        Control(llm).clear()
        seen["parted"] = parted(llm, rank)
        return seen | {"lines": lines}


def ordinary(folder: Path) -> dict[str, Any]:
    """Generate with speculation, and samples with coupling: without drafts, cold and warm."""
    from rolltree.vllm import Control

    with two_ranks("rolltree", "mp", options={"coupled": True}) as llm:
        seen = learned_and_frozen(llm, folder)
        Control(llm).pause()
        samples = [sampled(llm)]
        Control(llm).resume()
        return seen | {"sampled": [*samples, sampled(llm), sampled(llm)]}


def learned_and_frozen(llm: Any, folder: Path) -> dict[str, Any]:
    """Greedy text, cold and warm, by a cost that is learned, then by one from a file; trees emptied in between."""
    from rolltree.vllm import Control

    control, seen = Control(llm), {}
    for name, cost in (("learned", "observed"), ("frozen", str(folder / "cost.json"))):
        llm.collective_rpc(start_anew, args=(cost,))
        texts = [greedy(llm)]
        cold = control.stats()["accepted"]
        llm.reset_prefix_cache()  # as a trainer does behind a weight update
        texts.append(greedy(llm))
        stats = control.stats()
        control.clear()  # what was learned stays, and is the same on all ranks
        texts.append(greedy(llm))
        stats["errors"] += control.stats()["errors"]
        costs = llm.collective_rpc(cost_of)
        seen[name] = {"texts": texts, "cold": cold, "warm": stats["accepted"] - cold, "stats": stats, "costs": costs}
    return seen


def start_anew(worker: Any, cost: str) -> None:
    """Give the worker a proposer as vLLM makes it, with another `cost`, and a clock of its own."""
    import random

    from rolltree.vllm import proposer

    class Clock:
        def __init__(self, seed: int) -> None:
            self.now, self.random = 0.0, random.Random(seed)

        def perf_counter(self) -> float:
            self.now += self.random.uniform(1e-3, 3e-3)
            return self.now

    proposer.time = Clock(worker.rank)  # type: ignore[assignment]
    worker.vllm_config.additional_config["rolltree"]["cost"] = cost
    worker.model_runner.drafter = proposer.Proposer(worker.vllm_config)


def cost_of(worker: Any) -> list[float]:
    """The cost model that the rank drafts by."""
    from dataclasses import astuple

    return list(astuple(worker.model_runner.drafter.core.drafter.cost))


def paused_by_one(llm: Any, rank: int) -> dict[str, Any]:
    """Drafting paused on the last rank only, then resumed there."""
    from rolltree.vllm import Control

    control, before = Control(llm), stats(llm)
    if rank == 1:
        control.pause()
    seen = {"texts": greedy(llm), "drafted": stats(llm)["drafted"] - before["drafted"]}
    if rank == 1:
        control.resume()
    return seen | {"texts_after": greedy(llm), "drafted_after": stats(llm)["drafted"] - before["drafted"]}


def failed_once(llm: Any, rank: int) -> dict[str, Any]:
    """An error on the last rank in the middle of a generation."""
    drafter = proposer_of(llm).drafter
    advance, calls = drafter.advance, iter(range(10**6))

    def failing(*arguments: Any) -> None:
        if next(calls) == 3:
            raise RuntimeError("planted")
        advance(*arguments)

    if rank == 1:
        drafter.advance = failing
    before = stats(llm)["errors"]
    texts = greedy(llm)
    emptied = proposer_of(llm).drafter is not drafter
    return {"texts": [texts, greedy(llm)], "emptied": emptied, "new_errors": stats(llm)["errors"] - before} | stats(llm)


def parted(llm: Any, rank: int) -> dict[str, Any]:
    """The last rank drafts something else, once there is something to draft from."""
    proposer = proposer_of(llm)
    draft = proposer.drafter.draft

    def other(handles: Any, limits: Any) -> Any:
        batch = draft(handles, limits)
        if len(handles):
            batch.tokens[:, 0] += 1
        return batch

    texts = [greedy(llm)]
    if rank == 1:
        proposer.drafter.draft = other
    texts.append(greedy(llm))
    return {"texts": texts, "paused": proposer.paused} | stats(llm)


def two_ranks(
    method: str, executor: str, *, runner: str = "V1", options: dict[str, Any] | None = None, **settings: Any
) -> Any:
    """An engine of two ranks; `options` are rolltree's."""
    from tests.vllm.engines import engine

    return engine(
        method,
        runner=runner,
        tensor_parallel_size=2,
        distributed_executor_backend=executor,
        additional_config={"rolltree": {"metrics": False} | (options or {})},
        **({"max_num_seqs": COUNT} | settings),
    )


def greedy(llm: Any) -> list[list[int]]:
    from tests.vllm.engines import generate, prompts

    return generate(llm, prompts(COUNT), max_tokens=LONGEST)


def sampled(llm: Any) -> list[list[int]]:
    from tests.vllm.engines import generate, prompts

    return generate(llm, prompts(COUNT), max_tokens=LONGEST, temperature=1.0, seed=7)


def stats(llm: Any) -> dict[str, float]:
    from rolltree.vllm import Control

    return Control(llm).stats()


def proposer_of(llm: Any) -> Any:
    from tests.vllm.engines import proposer

    return proposer(llm)


def listen() -> list[str]:
    """Return a list that fills with rolltree's errors and warnings."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vllm.rolltree").addHandler(handler)
    return lines


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
