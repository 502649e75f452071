"""The parts of coupled sampling in vLLM that need no vLLM: verification, and seeds where the user gave none."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rolltree._native import murmur3_exponential
from rolltree.errors import RolltreeError
from rolltree.vllm.coupled_v1 import Draws, pick
from rolltree.vllm.seeds import RequestSeeds, seeded

VOCAB = 7


def one_pick(logits: torch.Tensor, seed: int, position: int) -> int:
    noise = [-np.log(murmur3_exponential(seed % 2**64, position, token)) for token in range(logits.shape[0])]
    return int((logits.double() + torch.tensor(noise)).argmax())


def test_picks_are_the_argmax_of_logits_and_noise() -> None:
    """Of each seed and position, masked tokens never; more tokens than the core computes noise for at a time."""
    torch.manual_seed(0)
    logits = torch.randn(40, 2500)
    logits[:, 1200:1300] = float("-inf")
    seeds = np.arange(40, dtype=np.int64) * 10**17 - 2 * 10**18
    positions = np.arange(40, dtype=np.int64) * 31
    expected = [one_pick(row, int(seed), int(at)) for row, seed, at in zip(logits, seeds, positions, strict=True)]
    assert pick(logits, seeds, positions).tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_a_draft_is_accepted_iff_it_is_the_pick(seed: int) -> None:
    """Against a loop over random rows: with and without drafts, greedy and sampled, some drafts right."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    counts = [rng.randrange(4) for _ in range(6)]
    seeds, last = np.array([rng.getrandbits(62) for _ in counts]), np.array([rng.randrange(9, 99) for _ in counts])
    heat = torch.tensor([rng.choice([0.0, 1.0]) for _ in counts])
    logits, bonus = torch.randn(sum(counts), VOCAB), torch.tensor([[rng.randrange(VOCAB)] for _ in counts])
    drafts, expected = list[int](), list[list[int]]()
    for row, count in enumerate(counts):
        emitted, alive = list[int](), True
        for step in range(count):
            at, values = int(last[row]) - count + step, logits[len(drafts)]
            right = one_pick(values, int(seeds[row]), at) if heat[row] else int(values.argmax())
            drafts.append(right if rng.random() < 0.7 else (right + 1) % VOCAB)
            emitted += [right] if alive else []
            alive = alive and drafts[-1] == right
        emitted += [int(bonus[row])] if alive else []
        expected.append(emitted + [-1] * (max(counts) + 1 - len(emitted)))
    metadata = SimpleNamespace(all_greedy=False, all_random=bool(heat.all()), temperature=heat)
    ends = torch.tensor(counts).cumsum(0)
    given = torch.tensor(drafts, dtype=torch.int32)
    out = Draws(seeds, last).verify(given, counts, max(counts), ends, None, logits, bonus.int(), metadata)
    assert out.tolist() == expected
    assert out.dtype == torch.int32


def test_what_a_coupled_draw_would_not_heed_is_refused() -> None:
    draws = Draws(np.zeros(1, np.int64), np.zeros(1, np.int64))
    with pytest.raises(RolltreeError, match="certain drafts"):
        draws.verify(None, [1], 1, None, torch.ones(1, VOCAB), None, None, None)


@dataclass
class Sampling:
    seed: int | None = None
    temperature: float = 1.0

    def clone(self) -> Any:
        return Sampling(self.seed, self.temperature)


@dataclass
class Request:
    req_id: str
    sampling_params: Sampling


@dataclass
class Schedule:
    scheduled_new_reqs: list[Request] = field(default_factory=list)


def test_a_request_keeps_its_seed_as_long_as_it_runs() -> None:
    """Preempted it comes back with the same; under the same id later it is another; engines and requests differ."""
    seeds = RequestSeeds(0, by_id=True)
    first, second = seeds.of("0-abc", None), seeds.of("1-abc", None)
    assert [seeds.of("0-abc", None), seeds.of("0-abc", 5)] == [first, 5]
    seeds.forget(["0-abc"])
    again, other = seeds.of("0-abc", None), RequestSeeds(1, by_id=True).of("0-abc", None)
    assert len({first, second, again, other}) == 4
    assert all(-(2**63) <= seed < 2**63 for seed in (first, second, again, other))


def test_seeds_repeat_with_the_order_of_requests() -> None:
    """What vLLM puts behind an id is random and does not count; by order alone where ids differ between ranks."""
    assert RequestSeeds(3, by_id=True).of("7-1a2b", None) == RequestSeeds(3, by_id=True).of("7-ffff", None)
    assert RequestSeeds(3, by_id=True).of("7-1a2b", None) != RequestSeeds(3, by_id=True).of("8-1a2b", None)
    assert RequestSeeds(3, by_id=False).of("7-1a2b", None) == RequestSeeds(3, by_id=False).of("8-ffff", None)


def test_the_schedulers_own_requests_are_left_alone() -> None:
    """A copy gets the seed; greedy requests and those with a seed stay as they are."""
    seeds = RequestSeeds(0, by_id=True)
    schedule = Schedule(
        [Request("a", Sampling()), Request("b", Sampling(seed=4)), Request("c", Sampling(temperature=0))]
    )
    ours = seeded(schedule, seeds)
    assert [request.sampling_params.seed for request in schedule.scheduled_new_reqs] == [None, 4, None]
    assert [request.sampling_params.seed for request in ours.scheduled_new_reqs] == [seeds.of("a", None), 4, None]
    done = Schedule(ours.scheduled_new_reqs)
    assert seeded(done, seeds) is done
