"""The seed of each request's noise where sampling is coupled: the user's, or one derived where the user gave none.

Derived from the engine's seed, how many such requests came before, and the request's id, so that a script that is run
again samples the same, and replicas with the same seed do not. All ranks see requests in the same order; ids differ
between ranks that schedule for themselves, and are left out there. A seed lasts as long as its request, through
preemption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any


class RequestSeeds:
    """Seeds of the requests that are running.

    Args:
        engine_seed: of the engine.
        by_id: whether ids are the same on all ranks.

    """

    def __init__(self, engine_seed: int, *, by_id: bool) -> None:
        self._engine_seed, self._by_id = engine_seed, by_id
        self._derived: dict[str, int] = {}
        self._count = 0

    def of(self, id: str, given: int | None) -> int:
        """Return a request's seed, a 64-bit signed integer; `given` is the user's."""
        if given is not None:
            return given
        if id not in self._derived:
            self._derived[id] = self._derive(id)
        return self._derived[id]

    def forget(self, ids: Iterable[str]) -> None:
        """These requests are no more; one that comes under the same id later is another."""
        for id in ids:
            self._derived.pop(id, None)

    def _derive(self, id: str) -> int:
        name = id.rpartition("-")[0] if self._by_id else ""  # behind the last "-" vLLM puts what is random
        text = f"{self._engine_seed} {self._count} {name}"
        self._count += 1
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def seeded(schedule: Any, seeds: RequestSeeds) -> Any:
    """Return the schedule with a seed for every new request that samples; the same object where all have one.

    Neither the schedule nor its requests are changed: the scheduler may hold the same objects.
    """
    new = [_seeded(request, seeds) for request in schedule.scheduled_new_reqs]
    if all(one is other for one, other in zip(new, schedule.scheduled_new_reqs, strict=True)):
        return schedule
    return dataclasses.replace(schedule, scheduled_new_reqs=new)


def _seeded(request: Any, seeds: RequestSeeds) -> Any:
    sampling = request.sampling_params
    if sampling is None or sampling.seed is not None or not sampling.temperature:
        return request
    sampling = sampling.clone()
    sampling.seed = seeds.of(request.req_id, None)
    return dataclasses.replace(request, sampling_params=sampling)
