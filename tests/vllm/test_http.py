"""A request's options over HTTP: vLLM's own OpenAI server, one process for all tests, and a plain HTTP client."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rolltree.serving.request_options import KINDS
from tests.vllm.engines import prompts
from tests.vllm.server import HEADERS, Server, server


@pytest.fixture(name="web", scope="module")
def fixture_web() -> Iterator[Server]:
    with server() as running:
        yield running


BODIES: dict[str, dict[str, Any]] = {
    "completions": {"prompt": "1", "max_tokens": 4},
    "chat/completions": {"messages": [{"role": "user", "content": "1"}], "max_tokens": 4},
    "responses": {"input": "1", "max_output_tokens": 4},
}
"""What each endpoint is asked."""


def ids(number: int) -> list[int]:
    """A prompt of the demo's task."""
    return prompts(number + 1)[number]["prompt_token_ids"]


def test_the_start_says_what_is_on(web: Server) -> None:
    """One line names the drafts, the limits of a step, and that nothing but the environment asked for them."""
    (banner,) = [line for line in web.lines if "rolltree 0" in line and "is ON" in line]
    assert "tokens a step and half of the memory" in banner
    assert "a request by 256 tokens" in banner
    assert "The environment turned it on: ROLLTREE_DRAFT=8." in banner


def test_what_the_server_sees_is_inferred(web: Server) -> None:
    """Weight updates, of several signs each; a salt that is a version; the id of a conversation. The engine core and
    the worker are in another process than the server, and nothing is asked for in a request's options."""
    before = web.figures()
    for turn in ([*ids(6), 5], [*ids(6), 5, 6, 7]):
        assert web.complete(turn, headers={"X-Session-ID": "trace-1"})[0] == 200
    assert web.complete([*ids(6), 5, 6, 7, 8], session_id="trace-1")[0] == 200
    seen = web.figures()
    assert seen["cache_prompts"] - before["cache_prompts"] == 1
    assert seen["inferred_sessions"] - before["inferred_sessions"] == 3
    for _ in range(2):
        assert web.ask("/reset_prefix_cache", method="POST")[0] == 200
    assert web.figures()["inferred_versions"] == seen["inferred_versions"]
    web.complete(ids(6))
    assert web.figures()["inferred_versions"] - seen["inferred_versions"] == 1
    for salt in ("7", "tenant-1", "7"):
        assert web.complete(ids(6), cache_salt=salt)[0] == 200
    assert web.figures()["inferred_versions"] - seen["inferred_versions"] == 2
    assert web.shown("inferred_versions") == web.figures()["inferred_versions"]


def test_flat_names_work(web: Server) -> None:
    """A key, a kind, a version, a session, and what is not drafted for or not remembered."""
    before = web.figures()
    assert web.complete(ids(0), {"rolltree_key": "k", "rolltree_version": "1"})[0] == 200
    assert web.complete(ids(1), {"rolltree_key": "k", "rolltree_version": 2})[0] == 200
    after = web.figures()
    assert after["cache_prompts"] - before["cache_prompts"] == 1
    assert web.complete(ids(0), {"rolltree_key": "k", "rolltree_kind": "validation"})[0] == 200
    assert web.complete(ids(2), {"rolltree_remember": "false"})[0] == 200
    assert web.complete(ids(2), {"rolltree_draft": 0, "rolltree_remember": False})[0] == 200
    last = web.figures()
    assert last["cache_rollouts"] == after["cache_rollouts"]
    assert last["tokens_validation"] - after["tokens_validation"] == 8
    assert last["tokens"] - after["tokens"] == 16  # the last was left alone
    for turn in (ids(3), [*ids(3), 5, 6, 7]):
        assert web.complete(turn, {"rolltree_session": "s"})[0] == 200
    assert web.figures()["cache_prompts"] - last["cache_prompts"] == 1


@pytest.mark.parametrize(
    ("xargs", "sentence"),
    [
        (
            {"rolltree_kind": "test"},
            "extra_args.rolltree_kind = 'test': must be one of rollout, validation, run-ahead.",
        ),
        (
            {"rolltree_version": "-1"},
            "extra_args.rolltree_version = '-1': must be a whole number from 0 to 2147483647.",
        ),
        ({"rolltree_draft": "maybe"}, "extra_args.rolltree_draft = 'maybe': must be true or false."),
        ({"rolltree_key": ["a"]}, "extra_args.rolltree_key = ['a']: must be a non-empty text of valid Unicode."),
        ({"rolltree.kind": "validation"}, "Did you mean 'rolltree_kind'?"),
        ({"rolltree_ky": "k"}, "Did you mean 'rolltree_key'?"),
        ({"rolltree": '{"key": "k"}'}, "Over HTTP, set rolltree_key, rolltree_session"),
    ],
)
@pytest.mark.parametrize("path", BODIES)
def test_bad_values_are_answered_with_the_sentence(
    web: Server, xargs: dict[str, Any], sentence: str, path: str
) -> None:
    """Status 400, and the message names the option, the value and what is allowed."""
    status, text = web.ask(f"/v1/{path}", {"model": "demo", "vllm_xargs": xargs} | BODIES[path])
    error = json.loads(text)["error"]
    assert (status, error["code"]) == (400, 400), text
    assert sentence in error["message"]


def test_what_speculation_forbids_names_the_switch(web: Server) -> None:
    """vLLM refuses min_p beside any drafts; whoever sent it may not know that there are any."""
    status, answer = web.complete(ids(0), temperature=1.0, min_p=0.1)
    assert status == 400
    assert "ROLLTREE_DRAFT=8 turned it on: unset it" in answer["error"]["message"]


def test_the_nested_spelling_does_not_travel(web: Server) -> None:
    """vLLM itself refuses a dictionary in there; nothing of it is an internal error."""
    status, text = web.complete(ids(0), {"rolltree": {"key": "k"}})
    assert status == 400, text


def test_trl_in_server_mode(web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's own way to a server, without its weight transfer, which needs GPUs: marks, figures, evaluation."""
    accelerate, trl = pytest.importorskip("accelerate"), pytest.importorskip("trl.generation.vllm_generation")
    from rolltree.trl import attach

    monkeypatch.setattr(trl.VLLMClient, "init_communicator", lambda *args, **kwargs: None)
    processes = accelerate.Accelerator(cpu=True)
    generation = trl.VLLMGeneration(
        None, processes, None, mode="server", server_base_url=f"http://127.0.0.1:{web.port}", max_completion_length=8
    )
    trainer = SimpleNamespace(
        vllm_generation=generation,
        accelerator=processes,
        model=SimpleNamespace(training=True),
        state=SimpleNamespace(global_step=3),
        add_callback=lambda callback: None,
        _metrics={"train": {}, "eval": {}},
    )
    attached = attach(trainer)
    before = web.figures()
    made = {}
    for mode in ("train", "eval"):
        trainer.model.training = mode == "train"
        _, made[mode], _, _ = generation.generate([ids(7), ids(7), ids(8), ids(8)], None, num_generations=2)
        attached.exchange(mode)
    after = web.figures()
    tokens = {mode: sum(map(len, texts)) for mode, texts in made.items()}
    assert {mode: trainer._metrics[mode]["rolltree/tokens"] for mode in tokens} == {m: [n] for m, n in tokens.items()}
    assert after["tokens_validation"] - before["tokens_validation"] == tokens["eval"]
    assert after["cache_rollouts"] - before["cache_rollouts"] == len(made["train"])
    assert after["invalid_options"] == before["invalid_options"]


def test_several_samples_and_a_stream(web: Server) -> None:
    """`n` samples of one request share its options, and so does a stream, whose bad options are an event of it."""
    before = web.figures()
    status, answer = web.complete(ids(4), {"rolltree_key": "many"}, n=3, temperature=1.0)
    assert (status, len(answer["choices"])) == (200, 3)
    assert web.figures()["cache_rollouts"] - before["cache_rollouts"] == 3
    body = {"model": "demo", "prompt": ids(4), "max_tokens": 8, "temperature": 0, "stream": True}
    status, text = web.ask("/v1/completions", body | {"vllm_xargs": {"rolltree_key": "many"}})
    assert status == 200
    assert text.rstrip().endswith("[DONE]")
    _, text = web.ask("/v1/completions", body | {"vllm_xargs": {"rolltree_kind": "test"}})
    assert "must be one of rollout, validation, run-ahead" in text
    assert '"code": 400' in text.replace('"code":400', '"code": 400')


def test_a_client_that_goes_away(web: Server) -> None:
    """Connections are cut in mid-stream while others run on: their text is right, and nothing stays open."""
    right = web.complete(ids(5), max_tokens=60)[1]["choices"][0]["text"]
    body = {"model": "demo", "prompt": ids(5), "max_tokens": 200, "temperature": 0, "stream": True, "ignore_eos": True}
    texts: list[str] = []
    others = [
        threading.Thread(target=lambda: texts.append(web.complete(ids(5), max_tokens=60)[1]["choices"][0]["text"]))
        for _ in range(2)
    ]
    for other in others:
        other.start()
    for chunks in range(6):
        connection = web.connect()
        connection.request("POST", "/v1/completions", json.dumps(body).encode(), HEADERS)
        stream = connection.getresponse()
        for _ in range(chunks):
            stream.readline()
        connection.close()
    for other in others:
        other.join()
    assert texts == [right] * 2
    assert web.complete(ids(5), max_tokens=60)[1]["choices"][0]["text"] == right
    stats = web.figures()
    assert stats["errors"] == 0
    assert web.shown("errors") == 0


NAMES = [f"rolltree_{name}" for name in ("key", "session", "version", "kind", "draft", "remember")]
OTHERS = [
    "rolltree",
    "rolltree.kind",
    "Rolltree_key",
    "rolltree_",
    "rolltree-key",
    "rolltree_\u0000",
    "rolltreé",
    "other",
]
TEXTS = [
    *KINDS,
    "",
    " ",
    "true",
    "False",
    "0",
    "1",
    "12",
    "-0",
    "1e3",
    "\u0663",
    "nan",
    "null",
    "k" * 5000,
    "\ud800",
    "{}",
]
NUMBERS = [0, 1, -1, 7, 2**31, 2**63, 10**30, 0.0, -0.0, 1.0, 2.5, 1e300, True, False, None]
WRAPPED = [[], ["a"], [1, "b"], [[1]], {}, {"key": "k"}]


def test_no_option_is_an_internal_error(web: Server) -> None:
    """Whatever is sent under our names: an answer, or a 400 that says why; and the server goes on."""
    rng = random.Random(0)
    values = [*TEXTS, *NUMBERS, *WRAPPED]
    sent = [{name: value} for name in (NAMES[0], NAMES[2], NAMES[3], NAMES[5], "rolltree") for value in values]
    sent += [
        {rng.choice(NAMES + OTHERS): rng.choice(values) for _ in range(rng.randint(1, 3))} for _ in range(60)
    ]  # fmt: skip
    statuses = set()
    for xargs in sent:
        status, answer = web.complete(ids(0), xargs, max_tokens=1)
        assert status in (200, 400), (xargs, answer)
        if status == 400:
            assert len(answer["error"]["message"]) > 20
        statuses.add(status)
    assert statuses == {200, 400}


def test_the_server_lives(web: Server) -> None:
    """After all of the above it drafts as before, and no request was left open."""
    before = web.figures()
    texts = {web.complete(ids(0), max_tokens=60)[1]["choices"][0]["text"] for _ in range(3)}
    stats = web.figures()
    assert len(texts) == 1
    assert stats["accepted"] > before["accepted"]
    assert (stats["errors"], stats["invalid_options"], stats["cache_sessions"]) == (0, 0, 0)


def test_random_bytes_are_no_internal_error(web: Server) -> None:
    """Broken JSON around our options is vLLM's 400."""
    rng = random.Random(0)
    text = json.dumps({"model": "demo", "prompt": [1], "max_tokens": 1, "vllm_xargs": {"rolltree_key": "k"}}).encode()
    for _ in range(40):
        place = rng.randrange(len(text))
        broken = text[:place] + bytes([rng.randrange(256)]) + text[place + 1 :]
        status, answer = web.ask("/v1/completions", broken)
        assert status < 500, (broken, answer)
