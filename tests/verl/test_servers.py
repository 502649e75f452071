"""Calls to vLLM's servers are bounded in time, whatever a server does. Real Ray; the engines are stand-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from rolltree.verl.servers import Servers

PATIENT, HASTY = 120.0, 1.0
"""Seconds: for servers that answer, however busy the machine is, and for one that never will."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    yield
    ray.shutdown()


class Engine:
    """Answers as `AsyncLLM.collective_rpc` does: one reply a worker."""

    def __init__(self, rank: int, mood: str) -> None:
        self.rank, self.mood = rank, mood

    async def collective_rpc(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()) -> list[Any]:
        assert method == "rolltree"
        if self.mood == "hangs":
            await asyncio.Event().wait()
        if self.mood == "fails":
            raise RuntimeError("worker died")
        if self.mood == "plain":
            return [None, None]
        return [None, {"answer": {"rank": self.rank, "command": args[0]}}]


@ray.remote(num_cpus=0)
class Server:
    def __init__(self, rank: int, mood: str) -> None:
        self.engine = Engine(rank, mood)

    async def launch(self) -> None:
        """Start what verl's server starts: its web server's task, by which the event loop is found."""
        self._server_task = asyncio.create_task(asyncio.Event().wait())


def test_servers_are_found_by_rank_and_others_left_alone(cluster: None) -> None:
    names = ["vllm_server_10_0", "vllm_server_2_0", "vllm_server_reward_0_0", "vllm_server_2_1", "agent_loop_worker_0"]
    actors = [Server.options(name=name).remote(index, "well") for index, name in enumerate(names)]
    ray.get([actor.launch.remote() for actor in actors])
    servers = Servers.find(timeout=PATIENT)
    assert [answer["rank"] for answer in servers.call("stats")] == [1, 0]
    assert servers.failures == 0
    for actor in actors:
        ray.kill(actor)


@pytest.mark.parametrize("mood", ["fails", "dead"])
def test_one_bad_server_costs_only_its_own_answer(cluster: None, mood: str) -> None:
    actors = started("well", mood)
    if mood == "dead":
        ray.kill(actors[1])
    servers = Servers(actors, timeout=PATIENT)
    assert servers.call("stats") == [{"rank": 0, "command": "stats"}, None]
    assert servers.failures == 1
    assert servers.call("stats")[0] is not None, "the first failure spoiled the next call"


def test_a_server_that_cannot_even_be_asked_costs_only_its_own_answer(cluster: None) -> None:
    servers = Servers([*started("well"), object()], timeout=PATIENT)
    assert servers.call("stats") == [{"rank": 0, "command": "stats"}, None]
    assert servers.failures == 1


def test_a_server_that_hangs_is_given_up(cluster: None) -> None:
    actors = started("well", "hangs")
    hasty = Servers(actors, timeout=HASTY)
    assert hasty.call("stats")[1] is None, "and this test ends"
    assert hasty.failures >= 1
    assert Servers(actors[:1], timeout=PATIENT).call("stats") == [{"rank": 0, "command": "stats"}]


def test_a_server_that_fails_again_and_again_is_left_alone_for_longer_and_longer(cluster: None) -> None:
    """Asked in the calls 1, 2, 4 and 8; the trainer waits for it in none of the others."""
    actors = started("well", "fails")
    servers = Servers(actors, timeout=PATIENT)
    failures = []
    for _ in range(10):
        assert servers.counters()[0] == {"rank": 0, "command": "stats", "cost_rank": 0, "cost_command": "cost"}
        failures.append(servers.failures)
    assert failures == [1, 2, 2, 3, 3, 3, 3, 4, 4, 4]


def test_counters_and_cost_come_in_one_call(cluster: None) -> None:
    servers = Servers(started("well", "plain"), timeout=PATIENT)
    answered, plain = servers.counters()
    assert answered == {"rank": 0, "command": "stats", "cost_rank": 0, "cost_command": "cost"}
    assert plain is None, "an engine that drafts with something else"
    assert servers.failures == 0


def started(*moods: str) -> list[Any]:
    actors = [Server.remote(rank, mood) for rank, mood in enumerate(moods)]
    ray.get([actor.launch.remote() for actor in actors])
    return actors


def test_no_servers_is_no_answer(cluster: None) -> None:
    assert Servers([], timeout=PATIENT).call("stats") == []
