"""What requests are told of rolltree: keys, kinds, versions; and the client that tells them."""

from __future__ import annotations

import asyncio
import math
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rolltree.errors import InvalidInputError
from rolltree.serving.conversations import Conversations
from rolltree.serving.request_options import RequestOptions
from rolltree.tokens import prompt_key
from rolltree.verl.client import MarkingClient
from rolltree.verl.marks import CURRENT, Mark, marked, named_key, policy_version
from rolltree.verl.options import VerlOptions

PROMPT = [5, 6, 7]


class StubClient:
    """Records what a client of verl's servers is asked; after an abort verl's own resends what it was given."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def generate(self, request_id: str, *, prompt_ids: Any, sampling_params: Any, **kwargs: Any) -> str:
        self.asked.append({"request_id": request_id, "prompt": list(prompt_ids), **sampling_params, **kwargs})
        return "output"


def options_of(asked: dict[str, Any]) -> dict[str, Any]:
    return dict(asked["extra_args"]["rolltree"])


def test_key_depends_on_the_tokens_alone() -> None:
    assert prompt_key(PROMPT) == prompt_key(tuple(PROMPT)) != prompt_key([5, 6])
    assert prompt_key([256]) != prompt_key([0, 1])


def test_later_turns_keep_the_first_turns_key() -> None:
    conversations = Conversations()
    first = marked({}, Mark(), session="a", prompt=PROMPT, conversations=conversations)
    second = marked({}, Mark(), session="a", prompt=[*PROMPT, 8, 9], conversations=conversations)
    other = marked({}, Mark(), session="b", prompt=PROMPT, conversations=conversations)
    assert options_of(first)["key"] == options_of(second)["key"] == options_of(other)["key"]
    assert options_of(first)["session"] == options_of(second)["session"] != options_of(other)["session"]


def test_a_forgotten_conversation_is_the_oldest() -> None:
    conversations = Conversations(capacity=2)
    for session in ("a", "b", "a", "c"):
        conversations.remember(session, PROMPT)
    assert conversations.remember("a", [1]) == prompt_key(PROMPT)
    assert conversations.remember("b", [1]) == prompt_key([1])


def test_mark_names_validation_version_and_column() -> None:
    mark = Mark(validation=True, version=7, key="column:sum-1")
    options = options_of(marked({"temperature": 0}, mark, session="a", prompt=PROMPT, conversations=Conversations()))
    assert options == {"key": "column:sum-1", "session": "a", "version": 7, "kind": "validation"}


def test_training_has_no_kind_and_what_the_user_set_stays() -> None:
    given = {"extra_args": {"mine": 1, "rolltree": {"draft": False, "session": "s"}}, "top_p": 0.9}
    out = marked(given, Mark(), session="a", prompt=PROMPT, conversations=Conversations())
    assert out["extra_args"]["mine"] == 1
    assert out["extra_args"]["rolltree"] == {"key": prompt_key(PROMPT), "session": "s", "draft": False}
    assert given["extra_args"] == {"mine": 1, "rolltree": {"draft": False, "session": "s"}}, (
        "the caller's dictionary was changed"
    )


def test_without_drafts_every_request_says_so() -> None:
    """`speculate=false` beside `coupled`; a loop's own word stays."""
    client = pickle.loads(pickle.dumps(MarkingClient(StubClient(), draft=False)))
    asyncio.run(client.generate("a", prompt_ids=PROMPT, sampling_params={}))
    own = {"extra_args": {"rolltree": {"draft": True}}}
    asyncio.run(client.generate("b", prompt_ids=PROMPT, sampling_params=own))
    assert [options_of(asked)["draft"] for asked in client.asked] == [False, True]


def test_client_marks_by_the_context_of_the_agent_loop() -> None:
    """Two agent loops side by side, one of them a validation, each with two turns."""
    stub = StubClient()
    client = MarkingClient(stub)

    async def agent_loop(session: str, validation: bool) -> None:
        CURRENT.set(Mark(validation=validation, version=3))
        await client.generate(session, prompt_ids=PROMPT, sampling_params={"temperature": 1}, priority=4)
        await asyncio.sleep(0)
        await client.generate(session, prompt_ids=[*PROMPT, 1], sampling_params={"temperature": 1})

    async def both() -> None:
        await asyncio.gather(asyncio.create_task(agent_loop("a", False)), asyncio.create_task(agent_loop("b", True)))

    asyncio.run(both())
    kinds = {(asked["request_id"], options_of(asked).get("kind")) for asked in stub.asked}
    assert kinds == {("a", None), ("b", "validation")}
    assert {options_of(asked)["key"] for asked in stub.asked} == {prompt_key(PROMPT)}
    assert stub.asked[0]["priority"] == 4
    assert CURRENT.get() == Mark(), "the mark outlived its task"


def test_client_is_the_wrapped_one_in_all_else_and_survives_pickling() -> None:
    client = MarkingClient(StubClient())
    client.tokenizer = "set by verl's worker"
    assert client._client.tokenizer == client.tokenizer
    copy = pickle.loads(pickle.dumps(client))
    assert asyncio.run(copy.generate("a", prompt_ids=PROMPT, sampling_params={})) == "output"
    with pytest.raises(AttributeError):
        _ = client.nothing


def test_options_are_checked() -> None:
    assert VerlOptions.read(None) == VerlOptions()
    assert VerlOptions.read({"key_column": "id"}).key_column == "id"
    with pytest.raises(InvalidInputError, match=r"sampler_kwargs\.key_colum .*Did you mean 'key_column'"):
        VerlOptions.read({"key_colum": "id"})
    with pytest.raises(InvalidInputError, match="max_draft"):
        VerlOptions.read({"max_draft": 0})


def test_names_for_another_sampler_are_not_checked() -> None:
    def configured(path: str) -> Any:
        sampler = {"sampler_kwargs": {"key_column": "id", "theirs": 1}, "custom_sampler": {"path": path}}
        return SimpleNamespace(trainer=SimpleNamespace(v1=SimpleNamespace(sampler=sampler)))

    assert VerlOptions.of(configured("their.py")) == VerlOptions(key_column="id")
    with pytest.raises(InvalidInputError, match="theirs"):
        VerlOptions.of(configured("pkg://rolltree.verl"))


@pytest.mark.parametrize("step", [0, 7, 7.0, np.int64(7), np.int32(7), np.float64(7), np.float32(7), 2**31 - 1])
def test_a_step_of_any_kind_of_number_is_a_version(step: Any) -> None:
    version = policy_version(step)
    assert version == step
    assert type(version) is int, "a request takes no other number"


@pytest.mark.parametrize("step", [math.nan, math.inf, -math.inf, 1.5, "7", None, 2**31, 2**63, 10**400, 1e30, [7]])
def test_a_step_that_is_no_version_is_named(step: object) -> None:
    with pytest.raises(InvalidInputError, match="global_steps = "):
        policy_version(step)


def test_before_the_first_step_there_is_no_version() -> None:
    assert policy_version(-1) is policy_version(np.int64(-1)) is policy_version(-1.0) is None


def test_names_of_prompts_make_keys_that_any_encoding_carries() -> None:
    assert named_key("sum-1") == "column:sum-1"
    assert named_key(7) == "column:7"
    assert named_key(None) is named_key(math.nan) is None
    odd = named_key("half a pair \ud83d")
    assert odd is not None
    assert odd.encode() == b"column:half a pair \\ud83d"
    long = [named_key("x" * 100_000), named_key("x" * 100_001)]
    assert len(set(long)) == 2
    assert all(key is not None and len(key) < 100 for key in long)


def test_a_request_that_cannot_be_marked_is_made_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Said once, however many there are."""
    stub = StubClient()
    client = MarkingClient(stub)
    for session in "ab":
        asyncio.run(client.generate(session, prompt_ids=["no", "tokens"], sampling_params={"temperature": 1}))  # type: ignore[list-item]
    assert [asked["prompt"] for asked in stub.asked] == [["no", "tokens"]] * 2
    assert "extra_args" not in stub.asked[0]
    assert len([r for r in caplog.records if "a request's mark" in r.getMessage()]) <= 1


def test_flat_names_of_a_request_stay() -> None:
    """vLLM refuses a request that says the same thing twice."""
    sampling = {"extra_args": {"rolltree_key": "mine", "rolltree_version": 7}}
    made = marked(sampling, Mark(version=3), session="s", prompt=[1, 2], conversations=Conversations())
    assert made["extra_args"] == {"rolltree_key": "mine", "rolltree_version": 7, "rolltree": {"session": "s"}}
    assert RequestOptions.read(made["extra_args"]).key == "mine"
