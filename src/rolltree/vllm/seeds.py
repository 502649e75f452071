"""The seed of each request's noise where sampling is coupled: the user's, or one derived where the user gave none.

Derived from which engine it is, what the request is (prompt, key, kind, policy version), and its place among those that
are alike: so the samples of a prompt are a function of these, in whatever order different prompts arrive, and whatever
else the engine does. Samples of one prompt may change places with each other, no more.

Replicas of one seed would sample alike where a group is split between them. So an engine's number among its replicas
counts where it is known; where not, the names that hosts give to requests do, unless they are mere counts (`LLM`).

Invariants: a function of schedules and calls that all ranks of a forward pass get; no draft, error or clock changes it.
A seed lasts as long as its request, through preemption.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.serving.counts import ServingCounts
from rolltree.serving.places import Places
from rolltree.serving.request import ServedRequest
from rolltree.serving.request_options import LEFT_ALONE, RequestOptions
from rolltree.serving.versions import Source, Versions
from rolltree.tokens import as_version, prompt_key
from rolltree.vllm.request_state import request_of

VERL_REPLICA = "VERL_REPLICA_RANK"
"""What verl's servers put into the environment of their engines: a number that no other server of the training has."""
COUNTED = re.compile(r"(\d{1,12}_)?\d{1,12}")
"""Ids of `LLM` (of samples: with their number before): how many requests came before, not which one it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """Which engine derives."""

    seed: int
    """Of the engine."""
    rank: int = 0
    """Among the data-parallel replicas of the engine."""
    replica: int | None = None
    """Among engines of one seed; None: not known."""


def origin_of(config: Any, replica: int) -> Origin:
    """Return which engine it is, by vLLM's configuration, the option `replica` (-1: not set), and what verl says.

    Replicas of a dense model have rank 0 each, and what they were in `data_parallel_index`.
    """
    parallel, said = config.parallel_config, os.environ.get(VERL_REPLICA, "")
    ranks = (getattr(parallel, name, None) or 0 for name in ("data_parallel_index", "data_parallel_rank"))
    known = replica if replica >= 0 else int(said) if said.isdecimal() else None
    return Origin(int(getattr(config.model_config, "seed", None) or 0), max(map(int, ranks)), known)


class _Number:
    """What `Versions` keeps up to date; every worker has one, those that draft have a cache besides."""

    version = 0

    def set_version(self, version: int) -> None:
        self.version = version


class RequestSeeds:
    """Seeds of the requests that are running.

    Args:
        origin: which engine this is.
        alone: whether each rank schedules for itself. Names differ between such ranks, and a call may reach one of
            them only: neither names nor versions count then.
        infer: whether versions are taken from what else is known, where requests do not say theirs.
        counts: where derived seeds are counted.

    """

    def __init__(
        self, origin: Origin, *, alone: bool = False, infer: bool = True, counts: ServingCounts | None = None
    ) -> None:
        self._origin, self._alone = origin, alone
        self._by_name = origin.replica is None and not alone
        self._counts = counts or ServingCounts()
        self._number = _Number()
        self._versions = Versions(self._number, ServingCounts(), infer=infer)
        self._places = Places()
        self._derived: dict[str, int] = {}

    def __str__(self) -> str:
        """Return what derived seeds are of, for the line of the start."""
        origin = self._origin
        parts = [f"engine seed {origin.seed}", f"data-parallel rank {origin.rank}"]
        parts += [f"replica {origin.replica}"] * (origin.replica is not None)
        return ", ".join([*parts, *["name"] * self._by_name, "prompt", *["version"] * (not self._alone), "place"])

    def begin_step(self, schedule: Any) -> None:
        """Take in a schedule: forget what ended, and derive the seeds of those that come, in its order."""
        self.forget(schedule.finished_req_ids)
        if schedule.total_num_scheduled_tokens:
            self._versions.begin_step()
        for new in schedule.scheduled_new_reqs:
            sampling = new.sampling_params
            if sampling is not None and needs_seed(sampling) and new.req_id not in self._derived:
                self._derived[new.req_id] = self._derive(new.req_id, _read(new))

    def of(self, id: str, sampling: Any) -> int:
        """Return a request's seed, a 64-bit signed integer; 0 for one that is greedy.

        Raises:
            KeyError: the request came with no schedule. To draw in another way in silence would be worse.

        """
        if sampling.seed is not None:
            return int(sampling.seed)
        return self._derived[id] if sampling.temperature else 0

    def forget(self, ids: Iterable[str]) -> None:
        """These requests are no more; one that comes under the same id later is another."""
        for id in ids:
            self._derived.pop(id, None)

    def told(self, command: str, *arguments: Any) -> None:
        """Take note of a command to the workers that says something of the policy's version."""
        if command == "updated":
            self._versions.updated()
        elif command == "set_version":
            with suppress(InvalidInputError, TypeError):  # whoever called gets it from the worker that drafts
                self._versions.take(as_version(*arguments), Source.SAID)

    def _derive(self, id: str, request: ServedRequest) -> int:
        self._counts.derived_seeds += 1
        version = 0 if self._alone else self._version(request)
        name = _digest((*identity(request), self._name(id)), 16)
        place = self._places.take(version, name)
        seed = _digest((dataclasses.astuple(self._origin), version, name, place), 8)
        return int.from_bytes(seed, "little", signed=True)

    def _version(self, request: ServedRequest) -> int:
        said = self._versions.of(request)
        return self._number.version if said is None else said

    def _name(self, id: str) -> str:
        """Return what the host calls the request, where that tells it from those of other engines."""
        name = id.rpartition("-")[0] if self._by_name else ""  # behind the last "-" vLLM puts what is random
        return "" if COUNTED.fullmatch(name) else name


def needs_seed(sampling: Any) -> bool:
    """Whether a request draws, and nobody said by which seed."""
    return sampling.seed is None and bool(sampling.temperature)


def identity(request: ServedRequest) -> tuple[str, str, str]:
    """Return what requests have in common that may change places: kind, the user's key, the prompt as it is.

    A later turn, or a request that is sent again with its partial answer, is another prompt; its key is the first's.
    """
    prompt = ""
    if request.prompt is not None:
        with suppress(InvalidInputError):  # no tokens as trees know them: such prompts count as one
            prompt = prompt_key(request.prompt, media=request.media)
    return request.options.kind, request.options.key or "", prompt


def _read(new: Any) -> ServedRequest:
    try:
        options = RequestOptions.read(getattr(new.sampling_params, "extra_args", None), where="extra_args")
    except InvalidInputError:  # counted and said when the request has begun
        options = LEFT_ALONE
    return request_of(new, options)


def _digest(parts: tuple[Any, ...], size: int) -> bytes:
    """Return `size` bytes for plain values; different values have different texts."""
    return blake2b(repr(parts).encode(), digest_size=size).digest()


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
    if sampling is None or not needs_seed(sampling):
        return request
    sampling = sampling.clone()
    sampling.seed = seeds.of(request.req_id, sampling)
    return dataclasses.replace(request, sampling_params=sampling)
