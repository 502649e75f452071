"""Seeds of requests that have none, where sampling is coupled; needs no vLLM."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from rolltree.errors import InvalidInputError
from rolltree.serving.options import EngineOptions
from rolltree.vllm.seeds import VERL_REPLICA, Origin, RequestSeeds, origin_of, seeded
from tests.fake_vllm import FakeEngine, fake_proposer

ALONE = Origin(0, replica=0)


@dataclass
class Sampling:
    seed: int | None = None
    temperature: float = 1.0
    extra_args: dict[str, Any] | None = None

    def clone(self) -> Any:
        return replace(self)


@dataclass
class Request:
    req_id: str
    sampling_params: Sampling | None = field(default_factory=Sampling)
    prompt_token_ids: list[int] | None = field(default_factory=lambda: [1, 2, 3])
    prompt_embeds: Any = None
    mm_features: list[Any] = field(default_factory=list)


@dataclass
class Schedule:
    scheduled_new_reqs: list[Request] = field(default_factory=list)
    finished_req_ids: set[str] = field(default_factory=set)
    total_num_scheduled_tokens: int = 1


def asking(prompt: Sequence[int], **options: Any) -> Request:
    """A request of a name that nobody gives twice, as those of servers are."""
    name = f"{random.getrandbits(64):x}-0123abcd"
    return Request(name, Sampling(extra_args={"rolltree": options} if options else None), list(prompt))


def given(seeds: RequestSeeds, *requests: Request) -> list[int]:
    """The seeds of requests that come with one schedule."""
    seeds.begin_step(Schedule(list(requests)))
    return [seeds.of(request.req_id, request.sampling_params) for request in requests]


def by_prompt(seeds: RequestSeeds, requests: list[Request], rng: random.Random) -> Counter[tuple[object, ...]]:
    """Seeds and what they were for, of requests that come in any order and in any number of schedules."""
    requests, found = rng.sample(requests, len(requests)), Counter[tuple[object, ...]]()
    while requests:
        count = rng.randint(1, len(requests))
        now, requests = requests[:count], requests[count:]
        for request, seed in zip(now, given(seeds, *now), strict=True):
            assert request.sampling_params is not None
            found[str(request.prompt_token_ids), str(request.sampling_params.extra_args), seed] += 1
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_seeds_of_a_prompt_do_not_depend_on_the_order_of_requests(seed: int) -> None:
    """Nor on how they come together, on their ids, or on validation and run-ahead in between; no two are the same."""
    rng = random.Random(seed)
    others: list[dict[str, Any]] = [{"kind": "validation"}, {"kind": "run-ahead"}, {"key": "k"}, {"version": 3}]
    kinds = [{"version": 2} | options for options in ({}, *others)]
    requests = [asking([7, n], **options) for n in range(6) for options in kinds for _ in range(8)]
    first, second = (by_prompt(RequestSeeds(ALONE), requests, rng) for _ in range(2))
    assert first == second
    assert len({name[2] for name in first}) == len(requests)
    rollouts = [request for request in requests if request.sampling_params == asking([7], **kinds[0]).sampling_params]
    alone = by_prompt(RequestSeeds(ALONE), rollouts, rng)
    assert len(alone) == 48
    assert alone.items() <= first.items(), "what else came moved the places of rollouts"


def test_by_the_order_of_all_requests_they_would_depend_on_it() -> None:
    """So that the test above could fail: with one prompt's name for all, as if seeds went by arrival."""
    requests = [asking([7, n]) for n in range(6) for _ in range(8)]
    rng = random.Random(0)
    found = []
    for _ in range(2):
        seeds = RequestSeeds(ALONE)
        seeds._derive = lambda id, request, seeds=seeds: seeds._places.take(0, b"")  # type: ignore[method-assign, misc]
        found.append(by_prompt(seeds, requests, rng))
    assert found[0] != found[1]


def test_a_request_keeps_its_seed_as_long_as_it_runs() -> None:
    """Preempted it comes back with the same, with a longer text to read; under the same id later it is another."""
    seeds = RequestSeeds(ALONE)
    request = asking([1])
    (first,) = given(seeds, request)
    (second,) = given(seeds, asking([1]))
    assert given(seeds, replace(request, prompt_token_ids=[1, 5, 6])) == [first]
    seeds.begin_step(Schedule(finished_req_ids={request.req_id}))
    (again,) = given(seeds, request)
    assert len({first, second, again}) == 3
    assert all(-(2**63) <= seed < 2**63 for seed in (first, second, again))


def test_seeds_of_the_user_and_greedy_requests_take_no_place() -> None:
    seeds, other = RequestSeeds(ALONE), RequestSeeds(ALONE)
    mine, greedy = Request("a-0", Sampling(seed=5)), Request("b-0", Sampling(temperature=0))
    assert given(seeds, mine, greedy, Request("c-0"))[:2] == [5, 0]
    assert seeds.of("c-0", Sampling()) == given(other, Request("d-0"))[0]
    with pytest.raises(KeyError):
        seeds.of("never scheduled", Sampling())


def test_engines_differ() -> None:
    """By seed, by data-parallel rank, by replica, and a known replica from an unknown one."""
    origins = [ALONE, Origin(1, replica=0), Origin(0, 1, replica=0), Origin(0, replica=1), Origin(0)]
    found = [seed for origin in origins for seed in given(RequestSeeds(origin), Request("0-a"), Request("1-b"))]
    assert len(set(found)) == 2 * len(origins)
    assert given(RequestSeeds(ALONE), Request("0-a"), Request("1-b")) == found[:2]


def test_a_group_that_is_split_between_engines_of_one_seed_is_not_sampled_twice() -> None:
    """Two servers of the same seed that know of no replica: names of requests keep their seeds apart."""
    halves = [[asking([1, 2]) for _ in range(4)] for _ in range(2)]
    unknown = [seed for half in halves for seed in given(RequestSeeds(Origin(0)), *half)]
    assert len(set(unknown)) == 8
    known = [seed for n, half in enumerate(halves) for seed in given(RequestSeeds(Origin(0, replica=n)), *half)]
    assert len(set(known)) == 8
    same = [seed for half in halves for seed in given(RequestSeeds(ALONE), *half)]
    assert len(set(same)) == 4, "without either they would be sampled twice"


@pytest.mark.parametrize("named", ["cmpl-7f3a-0", "3_cmpl-7f3a", "0a1b", "1234567890123"])
def test_names_count_where_no_replica_is_known(named: str) -> None:
    """In any order, so a host that names its requests samples the same again; what vLLM puts behind is random."""
    seeds, again = RequestSeeds(Origin(0)), RequestSeeds(Origin(0))
    first = given(seeds, Request(f"{named}-11111111"), Request("other-22222222"))
    assert given(again, Request("other-33333333"), Request(f"{named}-44444444")) == first[::-1]
    assert given(seeds, Request(f"{named}-55555555"))[0] not in first, "the same name again is another request"


@pytest.mark.parametrize("ids", [("0-aaaaaaaa", "17-bbbbbbbb"), ("3_0-aaaaaaaa", "0_4-bbbbbbbb"), ("0", "1")])
def test_mere_counts_are_no_names(ids: tuple[str, str]) -> None:
    """Those of `LLM`, which say how many requests of any prompt came before."""
    assert given(RequestSeeds(Origin(0)), Request(ids[0])) == given(RequestSeeds(Origin(0)), Request(ids[1]))


def test_ranks_that_schedule_alone_need_neither_names_nor_commands() -> None:
    """Names differ between them, and a call may reach one of them only: they would draw different tokens."""
    one, other = (RequestSeeds(Origin(0), alone=True) for _ in range(2))
    first = given(one, asking([1]))
    one.told("set_version", 4)
    one.told("updated")
    assert first + given(one, asking([1])) == given(other, asking([1]), asking([1]))


def test_every_version_begins_anew() -> None:
    """A training that is resumed samples as it would have; said, or seen by a weight update; a late one goes on."""
    seeds = RequestSeeds(ALONE)
    first = [given(seeds, asking([1], version=version))[0] for version in (1, 1, 2, 3, 1)]
    assert len(set(first)) == 5
    assert given(RequestSeeds(ALONE), asking([1], version=2)) == [first[2]]
    announced = RequestSeeds(ALONE)
    announced.told("set_version", 2)
    assert given(announced, asking([1])) == [first[2]]
    announced.told("set_version", "nonsense")
    announced.told("set_version")
    announced.told("stats")
    assert given(announced, asking([1], version=3)) == [first[3]]


def test_weight_updates_that_nobody_names_are_versions() -> None:
    """Any number of calls between two steps is one; before the first step none; unless nothing is to be inferred."""
    found = {}
    for infer in (True, False):
        seeds = RequestSeeds(ALONE, infer=infer)
        seeds.told("updated")
        steps = [given(seeds, asking([1]))[0]]
        for _ in range(2):
            seeds.told("updated")
            seeds.told("updated")
            steps += given(seeds, asking([1]))
        found[infer] = steps
    places = given(RequestSeeds(ALONE), *(asking([1]) for _ in range(3)))
    assert found[False] == places
    assert found[True] == [given(RequestSeeds(ALONE), asking([1], version=version))[0] for version in range(3)]


def test_prompts_that_no_tree_can_hold_get_seeds_too() -> None:
    """Embeddings, a bad option, a picture without a hash, ids that are none: counted together, never the same."""
    picture = SimpleNamespace(identifier=None, mm_hash=None, mm_position=None)
    odd = [
        Request("a-0", prompt_token_ids=None, prompt_embeds=object()),
        Request("b-0", Sampling(extra_args={"rolltree": {"kind": "unheard of"}})),
        Request("c-0", mm_features=[picture]),
        Request("d-0", prompt_token_ids=[-1]),
        Request("e-0", prompt_token_ids=[]),
    ]
    assert len(set(given(RequestSeeds(ALONE), *odd))) == len(odd)
    assert given(RequestSeeds(ALONE), *odd) == given(RequestSeeds(ALONE), *odd)


def test_names_cannot_be_made_to_collide() -> None:
    """Parts are told apart, whatever a user writes into them."""
    texts = ["", "'", "a', 'b", "a", "b", "\\", "0", "None", "ä"]
    requests = [asking([1], **({"key": key} if key else {})) for key in texts]
    requests += [Request(f"{name}-0", prompt_token_ids=[1]) for name in texts if name not in ("", "0")]
    found = given(RequestSeeds(Origin(0)), *requests)
    assert len(set(found)) == len(requests)


def test_the_schedulers_own_requests_are_left_alone() -> None:
    """A copy gets the seed; greedy requests, those with a seed and those that pool stay as they are."""
    seeds = RequestSeeds(ALONE)
    new = [Request("a"), Request("b", Sampling(seed=4)), Request("c", Sampling(temperature=0)), Request("d", None)]
    schedule = Schedule(new)
    seeds.begin_step(schedule)
    ours = seeded(schedule, seeds)
    assert [request.sampling_params and request.sampling_params.seed for request in new] == [None, 4, None, None]
    assert ours.scheduled_new_reqs[0].sampling_params.seed == seeds.of("a", Sampling())
    assert ours.scheduled_new_reqs[1:] == new[1:]
    done = Schedule(ours.scheduled_new_reqs)
    assert seeded(done, seeds) is done


def test_the_line_of_the_start_says_what_seeds_are_of() -> None:
    assert str(RequestSeeds(Origin(7, 1))) == "engine seed 7, data-parallel rank 1, name, prompt, version, place"
    assert str(RequestSeeds(Origin(7), alone=True)) == "engine seed 7, data-parallel rank 0, prompt, place"


def config(**parallel: Any) -> Any:
    return SimpleNamespace(model_config=SimpleNamespace(seed=7), parallel_config=SimpleNamespace(**parallel))


def test_which_engine_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas of a dense model have rank 0 each; verl's servers say which one they are; the option wins."""
    monkeypatch.delenv(VERL_REPLICA, raising=False)
    assert origin_of(config(data_parallel_rank=0, data_parallel_index=3), -1) == Origin(7, 3)
    assert origin_of(config(data_parallel_rank=2), -1) == Origin(7, 2)
    assert origin_of(config(), 5) == Origin(7, 0, 5)
    monkeypatch.setenv(VERL_REPLICA, "1")
    assert origin_of(config(), -1) == Origin(7, 0, 1)
    assert origin_of(config(), 0) == Origin(7, 0, 0)
    monkeypatch.setenv(VERL_REPLICA, "")
    assert origin_of(config(), -1) == Origin(7)


def test_the_replicas_number_is_an_option() -> None:
    assert EngineOptions.read({}, {"ROLLTREE_REPLICA": "3"}, where="x").replica == 3
    for bad in (-2, 2**31):
        with pytest.raises(InvalidInputError, match="replica"):
            EngineOptions(replica=bad)


def test_the_v1_proposer_derives_as_requests_are_scheduled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the order of the schedule, before anything is drawn; drafts follow the same noise; commands reach it."""
    monkeypatch.setattr("rolltree.vllm.compat_v1.couple", lambda: None)
    with caplog.at_level(logging.INFO, "vllm.rolltree"):
        proposer = fake_proposer(monkeypatch, coupled=True, replica=0)
    origin = "engine seed 0, data-parallel rank 0, replica 0, prompt, version, place"
    assert f"Sampling is coupled; a request without a seed gets one of {origin}." in caplog.text
    engine, alike = FakeEngine(proposer), RequestSeeds(Origin(0, replica=0))
    found: dict[str, int] = {}
    monkeypatch.setattr(proposer.seeds, "forget", lambda ids: None)
    for epoch in range(2):
        ids = [f"{epoch}-{n}" for n in range(3)]
        for id in ids:
            engine.add(id, [1, 2, 3], seed=None, temperature=1.0)
        engine.run()
        found |= {id: proposer.seeds.of(id, Sampling()) for id in ids}
        proposer.rolltree_command("updated")
    requests = [asking([1, 2, 3], version=version) for version in (0, 1) for _ in range(3)]
    assert list(found.values()) == given(alike, *requests)
    assert proposer.core.stats()["derived_seeds"] == 6
    assert proposer.core.stats()["errors"] == 0
