"""Rollouts between engines by real Ray: an actor, a process beside each engine that speaks to it, and what may fail."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from benchmarks.sharing import MODEL, Fewest, Replica, run_step
from rolltree.replay.records import Rollout
from rolltree.sharing import courier as courier_module
from rolltree.sharing.child import ChildChannel
from rolltree.sharing.courier import Courier
from rolltree.sharing.exchange import Exchange
from rolltree.sharing.message import Reply, Request
from rolltree.sharing.ray_exchange import NAMESPACE, exchange_options
from tests.sharing_tools import port_of, sharing_host, stats, submit, trip
from tests.toy_host import ToyHost

SHARE, SLOTS, EVERY = 0.97, 16, 4
PROMPTS, LENGTH, EPOCHS, TURN = 4, 1000, 4, 25


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    small = {"num_cpus": 2, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, connect=False, head_node_args=small | {"include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(name="hosts")
def fixture_hosts(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[tuple[ToyHost, ToyHost]]:
    """Two engines that meet in an exchange of this test's own; what fails is tried again at once."""
    pair = tuple(sharing_host(ChildChannel(request.node.name), name) for name in "ab")
    for host in pair:
        port_of(host).courier._rest = lambda: 0.0  # type: ignore[method-assign]
    yield pair  # type: ignore[misc]
    for host in pair:
        port_of(host).courier.close()


def actor_of(name: str) -> Any:
    return ray.get_actor(name, namespace=NAMESPACE)


def until(condition: Callable[[], bool], *hosts: ToyHost) -> None:
    """Make trips until it holds; `trip` has a bound of its own."""
    for _ in range(100):
        if condition():
            return
        trip(*hosts)
    raise AssertionError("it never came")


def shares(one: ToyHost, other: ToyHost, name: str) -> bool:
    """Whether what one engine generates from now on reaches the other, which generates the same."""
    prompts = [[3, len(one.states) % 40, n] for n in range(2)]
    before = stats(other)["shared_rollouts"]
    submit(one, name, prompts, max_tokens=40)
    one.run()
    submit(other, name, prompts, max_tokens=40)
    other.step()
    until(lambda: stats(other)["shared_rollouts"] >= before + 2, one, other)
    texts = other.run()
    return all(texts[f"{name}-{n}"] == one.states[f"{name}-{n}"].output for n in range(2))


def test_what_is_killed_costs_a_line_and_no_step(
    hosts: tuple[ToyHost, ToyHost], request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """The exchange; the process that made it, and with it the exchange: generation goes on, and it comes back."""
    caplog.set_level(logging.INFO, "rolltree")
    one, other = hosts
    assert shares(one, other, "well")
    ray.kill(actor_of(request.node.name), no_restart=True)
    failed = stats(one)["shared_failures"]
    submit(one, "without", max_tokens=40)
    one.run()
    until(lambda: stats(one)["shared_failures"] > failed, one)
    assert shares(one, other, "again")
    child = port_of(one).courier.channel._process  # type: ignore[attr-defined]
    child.kill()
    child.wait()
    submit(one, "orphan", max_tokens=40)
    one.run()
    assert shares(one, other, "and again")
    assert (stats(one)["errors"], stats(other)["errors"]) == (0, 0)
    levels = [r.levelname for r in caplog.records if "exchange of rollouts" in r.message]
    assert 2 <= levels.count("WARNING") == levels.count("INFO") <= 6


class Gate(Exchange):
    """An exchange that answers once it is let."""

    def trade(self, request: Request) -> Reply:
        while ray.get(actor_of("the gate's key").is_shut.remote()):
            time.sleep(0.05)
        return super().trade(request)


class Key:
    """Says whether a gate is shut."""

    def __init__(self) -> None:
        self.shut = True

    def is_shut(self) -> bool:
        return self.shut

    def open(self) -> None:
        self.shut = False


def test_generation_never_waits_for_an_exchange(
    hosts: tuple[ToyHost, ToyHost], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not answer before all is generated, first within the time-out, then past it; then it does."""
    one, other = hosts
    key = ray.remote(Key).options(name="the gate's key", namespace=NAMESPACE, num_cpus=0).remote()
    gate = ray.remote(Gate).options(**exchange_options(request.node.name)).remote()
    ray.get(key.is_shut.remote())
    submit(one, "x", max_tokens=60)
    texts = one.run()
    assert port_of(one).courier.trips == 0
    assert port_of(one).courier._trip is not None, "it is under way, and all is generated"
    plain = ToyHost()
    submit(plain, "x", max_tokens=60)
    assert texts == plain.run()
    monkeypatch.setattr(courier_module, "TIMEOUT_SECONDS", 0.5)
    failed = stats(one)["shared_failures"]
    submit(other, "x", max_tokens=60)
    other.step()
    until(lambda: stats(other)["shared_failures"] > failed, other)
    monkeypatch.undo()
    ray.get(key.open.remote())
    assert shares(one, other, "open")
    ray.kill(gate)
    ray.kill(key)


def second_node(cluster: Cluster) -> Any:
    """Add a node; Ray gives one 30 seconds to start, which on a busy machine may be too few."""
    for attempt in range(4):
        try:
            return cluster.add_node(num_cpus=1, resources={"far": 1}, object_store_memory=80_000_000)
        except Exception:
            if attempt == 3:
                raise
    raise AssertionError


@pytest.mark.slow
def test_a_node_that_goes_takes_the_exchange_along_and_another_is_made(
    hosts: tuple[ToyHost, ToyHost], cluster: Cluster, request: pytest.FixtureRequest
) -> None:
    one, other = hosts
    node = second_node(cluster)
    options = exchange_options(request.node.name) | {"resources": {"far": 1}}
    ray.get(ray.remote(Exchange).options(**options).remote().__ray_ready__.remote())
    assert shares(one, other, "far")
    cluster.remove_node(node)
    assert shares(one, other, "near")
    assert (stats(one)["errors"], stats(other)["errors"]) == (0, 0)


def recorded(epoch: int) -> list[Rollout]:
    """Eight samples of each prompt, which follow one of few ways for a while and then another."""
    rng, made = np.random.default_rng(epoch), list[Rollout]()
    ways = np.random.default_rng(7).integers(0, 1000, (PROMPTS, 4, LENGTH)).astype(np.int32)
    for prompt in range(PROMPTS):
        for sample in range(8):
            text, at = np.empty(LENGTH, np.int32), 0
            while at < LENGTH:
                end = min(LENGTH, at + int(rng.geometric(1 / TURN)))
                text[at:end], at = ways[prompt, rng.integers(4), at:end], end
            made.append(Rollout(
                prompt_id=str(prompt), prompt=np.array([prompt] * 4, np.int32), tokens=text, step=epoch, sample=sample
            ))  # fmt: skip
    return made


class EachStep(Courier):
    """Has begun and ended a trip, by real Ray, after each so many steps, whatever the machine's load."""

    steps = 0

    def allowance(self) -> int:
        self.steps += 1
        return 1 << 20 if self.steps % EVERY == 0 and self._trip is None and self._return is None else 0

    def send(self, trip_: Any) -> None:
        super().send(trip_)
        assert self.arrived.wait(120)


def generated(replicas: int, *, share: str = "") -> list[float]:
    """Tokens per step of each epoch; requests go to whichever replica has the fewest, as in verl."""
    engines = {str(n): Replica(slots=SLOTS // replicas) for n in range(replicas)}
    couriers = [
        EachStep(ChildChannel(share), MODEL, name, seconds=0.0, bytes_a_second=1 << 30, log=logging.getLogger())
        for name in (engines if share else ())
    ]
    for engine, courier in zip(engines.values(), couriers, strict=False):
        engine.share(courier)
    router = Fewest(list(engines))
    found = [run_step(engines, router, recorded(epoch), epoch) for epoch in range(EPOCHS)]
    assert all(step["errors"] == 0 for step in found)
    for courier in couriers:
        courier.close()
    return [step["tokens_per_step"] for step in found]


def test_with_sharing_replicas_draft_as_one_that_sees_all(cluster: Cluster) -> None:
    """Without the router, on 2 and on 4, once each has learned to draft; without sharing they do not."""
    whole = generated(1)[-1]
    together = [generated(replicas, share=f"with {replicas}")[-1] for replicas in (2, 4)]
    assert min(together) >= SHARE * whole, (whole, together)
    assert generated(2)[-1] < SHARE * whole
