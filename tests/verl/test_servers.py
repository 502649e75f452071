"""Calls to vLLM's servers are bounded in time, whatever a server does. Real Ray; the engines are stand-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from rolltree.verl.servers import Servers

TIMEOUT = 2.0


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
    servers = Servers.find(timeout=TIMEOUT)
    assert [answer["rank"] for answer in servers.call("stats")] == [1, 0]
    assert servers.failures == 0
    for actor in actors:
        ray.kill(actor)


@pytest.mark.parametrize("mood", ["hangs", "fails", "dead"])
def test_one_bad_server_costs_only_its_own_answer(cluster: None, mood: str) -> None:
    actors = [Server.remote(0, "well"), Server.remote(1, mood)]
    ray.get([actor.launch.remote() for actor in actors])
    if mood == "dead":
        ray.kill(actors[1])
    servers = Servers(actors, timeout=TIMEOUT)
    assert servers.call("stats") == [{"rank": 0, "command": "stats"}, None]
    assert servers.failures == 1
    assert servers.call("stats")[0] is not None, "the first failure spoiled the next call"


def test_no_servers_is_no_answer(cluster: None) -> None:
    assert Servers([], timeout=TIMEOUT).call("stats") == []
