"""`attach`: what it hooks, marks, counts and refuses, on stand-ins; tests/vllm/test_trl.py has the real ones."""

from __future__ import annotations

import logging
import pickle
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")

from rolltree.errors import InvalidInputError, RolltreeError
from rolltree.trl import attach
from rolltree.trl.engines import in_body, with_marks
from rolltree.trl.ranks import Ranks, Report
from rolltree.trl.turns import Turns


class Params:
    """As `vllm.SamplingParams`, for what is read of it."""

    def __init__(self, **settings: Any) -> None:
        self.extra_args: dict[str, Any] | None = settings.pop("extra_args", None)
        self.settings = settings


class Engine:
    """As `vllm.LLM`: writes down what it is asked, answers with the last prompt token."""

    def __init__(self, *, drafts: bool = True, faults: bool = False) -> None:
        self.drafts, self.faults = drafts, faults
        self.asked: list[list[Params]] = []
        self.commands: list[str] = []
        self.tokens = 0.0

    def generate(self, prompts: list[Any], sampling_params: Any = None, use_tqdm: bool = True) -> list[Any]:
        self.asked.append(sampling_params)
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        self.tokens += len(ids)
        return [SimpleNamespace(prompt_token_ids=i, outputs=[SimpleNamespace(token_ids=i[-1:])]) for i in ids]

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self.commands.append(args[0])
        if self.faults and args[0] != "stats":
            raise OSError("planted")
        stats = {"tokens": self.tokens, "row_steps": self.tokens / 2, "cache_prompts": 3.0, "tokens_per_step": 2.0}
        return [{"answer": stats if args[0] == "stats" else None} if self.drafts else None]


def trainer(engine: Any, *, mode: str = "colocate", client: Any = None) -> Any:
    """As a trainer of TRL, for what is read of it."""
    callbacks: list[Any] = []
    return SimpleNamespace(
        vllm_generation=SimpleNamespace(mode=mode, llm=engine, tensor_parallel_size=1, vllm_client=client),
        accelerator=SimpleNamespace(num_processes=1, process_index=0, is_main_process=True),
        model=SimpleNamespace(training=True),
        state=SimpleNamespace(global_step=0),
        callbacks=callbacks,
        add_callback=callbacks.append,
        remove_callback=callbacks.remove,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )


def end_step(made: Any) -> None:
    made.state.global_step += 1
    for callback in made.callbacks:
        callback.on_step_end(None, made.state, None)


def ask(engine: Any, *prompts: list[int], params: Any = None) -> list[Params]:
    given = params or Params(temperature=0.7)
    engine.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling_params=given, use_tqdm=False)
    return engine.asked[-1]


def test_a_trainer_without_vllm_is_told_what_to_use() -> None:
    with pytest.raises(
        InvalidInputError, match=r"args\.use_vllm = False: .*rollout_func=rolltree\.trl\.RolloutFunction"
    ):
        attach(SimpleNamespace(args=SimpleNamespace(use_vllm=False)))


def test_an_engine_that_does_not_draft_is_refused_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROLLTREE_DRAFT", raising=False)
    engine = Engine(drafts=False)
    made = trainer(engine)
    with pytest.raises(
        InvalidInputError, match=r"ROLLTREE_DRAFT = None: must be a number of draft tokens, like 16, in"
    ):
        attach(made)
    assert "generate" not in vars(engine)
    assert not made.callbacks


@pytest.mark.parametrize("option", ["share", "remember_evaluation"])
def test_an_option_of_the_wrong_kind_is_refused(option: str) -> None:
    with pytest.raises(InvalidInputError, match=option):
        attach(trainer(Engine()), **{option: "yes"})


def test_requests_differ_in_nothing_but_marks() -> None:
    """Samples of a prompt share parameters; the trainer's own stay as they were."""
    engine = Engine()
    attach(trainer(engine))
    given = Params(temperature=0.7, seed=3)
    asked = ask(engine, [1, 2], [1, 2], [3], params=given)
    assert [params.settings for params in asked] == [given.settings] * 3
    assert asked[0] is asked[1]
    assert given.extra_args is None
    marks = [params.extra_args["rolltree"] for params in asked if params.extra_args]
    assert [mark["version"] for mark in marks] == [0, 0, 0]
    assert marks[0]["session"] != marks[2]["session"]


def test_what_the_user_marks_wins() -> None:
    given = {"rolltree_version": "7", "other": 1}
    assert with_marks(given, {"version": 2, "kind": "validation"}) == {
        "other": 1, "rolltree": {"version": 7, "kind": "validation"},
    }  # fmt: skip
    body = in_body({"generation_kwargs": {"seed": 1, "vllm_xargs": {"rolltree_key": "k"}}}, {"version": 2})
    assert body == {"seed": 1, "vllm_xargs": {"rolltree_version": "2", "rolltree_key": "k"}}
    images = in_body({"features": [1], "generation_kwargs": None}, {"version": 2, "remember": False})
    assert images == {"extra_args": {"rolltree": {"version": 2, "remember": False}}}


def test_evaluation_is_a_validation() -> None:
    engine = Engine()
    made = trainer(engine)
    attach(made)
    made.model.training, made.state.global_step = False, 5
    (params,) = ask(engine, [1])
    assert params.extra_args is not None
    marks = params.extra_args["rolltree"]
    assert (marks["version"], marks["kind"], marks["remember"]) == (5, "validation", False)
    attach(made, remember_evaluation=True)
    (params,) = ask(engine, [1])
    assert params.extra_args is not None
    assert params.extra_args["rolltree"]["remember"] is True


def test_attached_twice_it_is_attached_once_and_detached_not_at_all() -> None:
    engine = Engine()
    made = trainer(engine)
    original = engine.generate
    attach(made)
    attached = attach(made)
    ask(engine, [1])
    assert engine.commands.count("commit") == 1
    assert len(made.callbacks) == 1
    attached.detach()
    assert engine.generate == original
    assert not made.callbacks
    assert "generate" not in vars(engine)
    attached.detach()


def test_a_hook_of_somebody_else_stays() -> None:
    """Put in place before ours it comes back; put on top of ours it is not thrown away."""
    engine = Engine()
    made = trainer(engine)
    engine.generate = below = lambda *args, **kwargs: []  # type: ignore[method-assign, assignment]
    attached = attach(made)
    attached.detach()
    assert engine.generate is below
    attached = attach(made)
    engine.generate = above = lambda *args, **kwargs: []  # type: ignore[method-assign, assignment]
    attached.detach()
    assert engine.generate is above


def test_the_log_has_sums_since_the_last_line_and_their_ratios() -> None:
    """Several steps a line, and a step without generation."""
    engine = Engine()
    made = trainer(engine)
    attach(made)
    for prompts in (1, 0, 3):
        if prompts:
            ask(engine, *[[1, 2]] * prompts)
        end_step(made)
    metrics = made._metrics["train"]
    assert metrics["rolltree/tokens"] == [4]
    assert metrics["rolltree/tokens_per_step"] == [2]
    assert metrics["rolltree/cache_prompts"] == [3]  # what is held is no sum
    assert metrics["rolltree/seconds"][0] > 0
    metrics.clear()  # as TRL does when it has logged
    ask(engine, [1])
    end_step(made)
    assert metrics["rolltree/tokens"] == [1]
    assert "rolltree/tokens" not in made._metrics["eval"]


def test_a_fault_of_ours_ends_no_training(caplog: pytest.LogCaptureFixture) -> None:
    """Commands that fail, and prompts and parameters that are not what they were: said once, generated as asked."""
    engine = Engine(faults=True)
    made = trainer(engine)
    attach(made)
    with caplog.at_level(logging.WARNING):
        ask(engine, [1])
        ask(engine, [2])
        unknown = SimpleNamespace()  # no extra_args
        assert ask(engine, [3], params=unknown) is unknown  # type: ignore[comparison-overlap]
        del made._metrics
        end_step(made)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all("Going on without rolltree" in line for line in said)


def test_later_turns_belong_to_the_first_prompt() -> None:
    turns = Turns()
    assert turns.roots([[1, 2], [1, 2], [3]]) == [2, 2, 1]
    turns.ended([([1, 2, 9], 2), ([1, 2, 8], 2), ([3, 7], 1)])
    assert turns.roots([[1, 2, 8, 0, 5], [3, 7, 0]]) == [2, 1]  # the first row asked for no tool
    turns.ended([([1, 2, 8, 0, 5, 4], 2), ([3, 7, 0, 6], 1)])
    assert turns.roots([[3, 7, 0, 6, 0]]) == [1]
    assert turns.roots([[3, 7, 0, 6, 0], [5]]) == [5, 1]  # a new round, with a prompt that happens to begin alike
    assert turns.roots([]) == []


def test_ranks_that_share_an_engine_speak_once() -> None:
    """Two engines of two ranks each: each gets the other's report, whichever rank asks."""
    ranks = [Ranks(4, index, 2) for index in range(4)]
    assert [rank.speaks for rank in ranks] == [True, False, True, False]
    assert [rank.engines for rank in ranks] == [2] * 4
    every = [Report(seconds=float(engine)) for engine in range(2)]
    assert [[report.seconds for report in rank.of_others(every)] for rank in ranks] == [[1], [1], [0], [0]]
    alone = Ranks(8, 3, 0)
    assert alone.engines == 1
    assert alone.gather(every[1]) == [every[1]]
    assert alone.of_others([every[1]]) == []
    assert pickle.loads(pickle.dumps(every)) == every


class Client:
    """As TRL's client of a server, for what is read of it."""

    base_url = "http://nowhere"

    def __init__(self, status: int = 200, answer: Any = None) -> None:
        self.bodies: list[Any] = []
        self.session = SimpleNamespace(post=lambda url, json: self._answer(json))
        self._status, self._reply = status, answer

    def _answer(self, body: Any) -> Any:
        def raise_for_status() -> None:
            if self._status != 200:
                raise OSError(f"{self._status} from the server")

        answer = {"tokens": 0.0} if self._reply is None else self._reply
        return SimpleNamespace(
            raise_for_status=raise_for_status, json=lambda: {"results": [{"answer": answer} if answer else None]}
        )

    def generate(self, prompts: Any, **settings: Any) -> Any:
        self.bodies.append(settings)
        return {}


@pytest.mark.parametrize(("status", "answer", "why"), [(404, None, "404"), (200, False, "does not draft")])
def test_a_server_that_does_not_draft_is_refused(status: int, answer: Any, why: str) -> None:
    made = trainer(None, mode="server", client=Client(status, answer))
    with pytest.raises(InvalidInputError, match=rf"in the server's environment, with VLLM_SERVER_DEV_MODE=1.*{why}"):
        attach(made)


def test_of_a_server_only_the_main_process_speaks() -> None:
    client = Client()
    made = trainer(None, mode="server", client=client)
    attach(made)
    client.generate([[1]], n=2, generation_kwargs={})
    assert client.bodies[-1] == {"n": 2, "generation_kwargs": {"vllm_xargs": {"rolltree_version": "0"}}}
    made.accelerator.is_main_process = False
    del made.vllm_generation.vllm_client
    attached = attach(made)
    assert not made.callbacks
    with pytest.raises(RolltreeError, match="main process"):
        attached.stats()
