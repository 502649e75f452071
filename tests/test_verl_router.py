"""A prompt stays on one replica across epochs, and no replica has much more to do than the others."""

from __future__ import annotations

import random

import pytest

from rolltree.errors import InvalidInputError
from rolltree.tokens import prompt_key
from rolltree.verl.placement import Placement
from rolltree.verl.router import PromptRouter

SERVERS = [f"10.0.0.{i}:8000" for i in range(8)]
EPOCHS, PROMPTS, SAMPLES = 4, 256, 8


def run_epochs(placement: Placement, rng: random.Random, *, batch: int = 64) -> tuple[float, float]:
    """Submit every batch at once and finish it in random order; return (share that stayed, worst load over mean)."""
    keys = [f"prompt-{i}" for i in range(PROMPTS)]
    before: dict[str, str] = {}
    stayed = total = 0
    worst = 0.0
    for _ in range(EPOCHS):
        rng.shuffle(keys)
        for start in range(0, PROMPTS, batch):
            group = [key for key in keys[start : start + batch] for _ in range(SAMPLES)]
            running = [(placement.place(key), key) for key in group]
            worst = max(worst, max(placement.loads.values()) * len(SERVERS) / len(group))
            for server, key in running:
                total += key in before
                stayed += before.get(key) == server
            before |= {key: server for server, key in running}
            rng.shuffle(running)
            for server, key in running:
                placement.finish(server, key)
    assert not any(placement.loads.values())
    assert not placement._running, "prompts that have nothing running are still counted"
    return stayed / total, worst


def test_prompts_return_and_loads_are_bounded() -> None:
    """8 replicas, 64 prompts x 8 samples at once, shuffled every epoch."""
    stayed, worst = run_epochs(Placement(SERVERS, bound=1.25), random.Random(0))
    assert stayed > 0.8
    assert worst <= 1.25 + SAMPLES * len(SERVERS) / (64 * SAMPLES)  # the bound and the rest of one group


def test_without_the_bound_loads_are_as_the_hash_has_it() -> None:
    """The price of the bound: all prompts return without it, and the worst replica has half as much again."""
    stayed, worst = run_epochs(Placement(SERVERS, bound=100), random.Random(0))
    assert stayed == 1
    assert worst > 1.4


def test_all_samples_of_a_prompt_go_together() -> None:
    placement = Placement(SERVERS)
    places = {key: {placement.place(key) for _ in range(SAMPLES)} for key in map(str, range(50))}
    assert {len(servers) for servers in places.values()} == {1}


def test_a_replica_that_leaves_takes_only_its_own_prompts_along() -> None:
    placement = Placement(SERVERS, bound=100)
    keys = [str(i) for i in range(200)]

    def places() -> dict[str, str]:
        found = {key: placement.place(key) for key in keys}
        for key, server in found.items():
            placement.finish(server, key)
        return found

    before = places()
    placement.remove(SERVERS[3])
    after = places()
    assert {key for key in keys if before[key] != after[key]} == {key for key in keys if before[key] == SERVERS[3]}
    placement.add(SERVERS[3])
    assert places() == after, "where they were wins over the ring"


def test_a_batch_goes_where_it_was_previewed() -> None:
    placement = Placement(["a", "b", "c"])
    keys = [f"prompt {index}" for index in range(50)]
    replicas = placement.preview(keys, 8)
    assert placement.loads == {"a": 0, "b": 0, "c": 0}
    assert [[placement.place(key) for _ in range(8)] for key in keys] == [[replica] * 8 for replica in replicas]
    assert max(placement.loads.values()) <= 1.25 * 400 / 3 + 8
    with pytest.raises(LookupError):
        Placement().preview(["prompt"], 1)


def test_previewed_places_are_kept_when_requests_come_in_another_order() -> None:
    keys = [f"prompt {index}" for index in range(50)]
    knowing, unknowing = Placement(["a", "b", "c"]), Placement(["a", "b", "c"])
    previewed = dict(zip(keys, knowing.preview(keys, 8), strict=True))
    random.Random(1).shuffle(keys)
    kept = [
        sum({placement.place(key) for _ in range(8)} == {previewed[key]} for key in keys)
        for placement in (knowing, unknowing)
    ]
    assert kept[0] > kept[1]


def test_no_replicas_is_an_error() -> None:
    with pytest.raises(LookupError):
        Placement().place("a")
    with pytest.raises(RuntimeError, match="No available servers"):
        PromptRouter({}).acquire_server("r")


def params(key: str) -> dict[str, object]:
    return {"extra_args": {"rolltree": {"key": key}}}


def test_router_keeps_conversations_and_prompts() -> None:
    router = PromptRouter({server: f"handle of {server}" for server in SERVERS}, {"router_class": "x", "bound": 2.0})
    server, handle = router.acquire_server("conversation", params("p"), [1])
    assert handle == f"handle of {server}"
    router.release_server(server, "conversation")
    assert router.acquire_server("conversation", params("another"), [1, 2, 3])[0] == server, "the second turn moved"
    assert router.acquire_server("sibling", params("p"))[0] == server
    assert router.get_total_inflight() == 2
    assert router.get_status()["servers"][server] == router.get_inflight_count(server) == 2
    for request in ("conversation", "sibling"):
        router.release_server(server, request)
    router.clear_sticky_cache()
    assert router.get_total_inflight() == 0
    assert router.acquire_server("next epoch", params("p"))[0] == server


def test_router_falls_back_to_the_prompt() -> None:
    router = PromptRouter(dict.fromkeys(SERVERS))
    by_prompt = router.acquire_server("a", {}, [1, 2])[0]
    assert router.acquire_server("b", params(prompt_key([1, 2])))[0] == by_prompt


def test_router_moves_a_conversation_whose_replica_is_gone() -> None:
    router = PromptRouter(dict.fromkeys(SERVERS))
    server = router.acquire_server("a", params("p"))[0]
    router.remove_servers([server])
    assert router.acquire_server("a", params("p"))[0] in router.get_all_servers()
    router.release_server(server, "a")
    router.add_servers({server: None})
    assert server in router.get_all_servers()


def test_router_refuses_what_it_does_not_know() -> None:
    with pytest.raises(InvalidInputError, match=r"router\.bund"):
        PromptRouter({}, {"bund": 2})
    with pytest.raises(InvalidInputError, match=r"router\.bound"):
        PromptRouter({}, {"bound": 0.5})
