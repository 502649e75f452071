"""The TRL adapter: what it reads from a trainer, what it leaves behind, and that drafts change nothing but speed."""

import random
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from rolltree.budget import CostModel
from rolltree.cache import RolloutCache
from rolltree.demo.assets import load_model, load_tokenizer
from rolltree.demo.task import Problem, sample_problems
from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine
from rolltree.errors import InvalidInputError, RequestError
from rolltree.runlog import steps
from rolltree.store import RolloutStore
from rolltree.trl import RolloutFunction, RolloutRecord
from rolltree.trl.history import total
from rolltree.trl.settings import check_trainer, end_token_ids, prompt_token_ids, request_seed, sampling_params

PROMPTS = [problem.prompt for problem in sample_problems(3, 11) for _ in range(4)]
FREE = CostModel(base=1.0, token=1e-6)  # drafts cost nothing: everything likely is drafted


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture
def model():
    return load_model().train()


@pytest.fixture
def trainer(model, tokenizer):
    args = SimpleNamespace(seed=42, temperature=1.0, top_k=0, top_p=1.0, min_p=None, max_completion_length=150)
    return SimpleNamespace(
        args=args,
        model=model,
        processing_class=tokenizer,
        state=SimpleNamespace(global_step=0),
        accelerator=SimpleNamespace(unwrap_model=lambda model: model, process_index=0),
        eos_token_ids=[1],
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )


def plain():
    return RolloutFunction(speculate=False, slots=12)


def fast(**kwargs):
    return RolloutFunction(**({"cost": FREE, "slots": 12} | kwargs))


def test_seeds_differ_in_every_coordinate():
    base = (42, 0, 5, 0, 0, 3)
    neighbours = [tuple(value + (i == j) for j, value in enumerate(base)) for i in range(len(base))]
    seeds = {request_seed(*place) for place in (base, *neighbours)}
    assert len(seeds) == 1 + len(base)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert request_seed(*base) == request_seed(*base)


def test_sampling_settings_are_the_trainers(trainer):
    trainer.args = SimpleNamespace(temperature=0.7, top_k=None, top_p=0.9, min_p=0.05, max_completion_length=33)
    params = sampling_params(trainer, 9)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.7, 0, 0.9, 0.05)
    assert (params.max_tokens, params.stop_token_ids, params.seed) == (33, (1,), 9)


def test_end_tokens_fall_back_to_the_tokenizers(trainer, tokenizer):
    assert end_token_ids(trainer) == (1,)
    del trainer.eos_token_ids
    assert end_token_ids(trainer) == (tokenizer.eos_token_id,)


def test_chat_prompts_go_through_the_template(trainer):
    tokenizer = load_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}{{ lead }}: {% endif %}"
    )
    trainer.processing_class, trainer.chat_template_kwargs = tokenizer, {"lead": "answer"}
    ids = prompt_token_ids(trainer, [[{"role": "user", "content": "sum 1 2"}]])
    assert tokenizer.decode(ids[0]) == "user: sum 1 2\nanswer: "


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("args", "use_vllm", True),
        ("args", "use_transformers_continuous_batching", True),
        ("args", "repetition_penalty", 1.1),
        ("args", "generation_kwargs", {"typical_p": 0.9}),
        (None, "is_fsdp_enabled", True),
        (None, "is_deepspeed_enabled", True),
        (None, "tools", [print]),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(trainer, place, name, value):
    check_trainer(trainer)
    setattr(trainer.args if place else trainer, name, value)
    with pytest.raises(InvalidInputError, match=name) as told:
        check_trainer(trainer)
    other_way = name in ("use_vllm", "is_fsdp_enabled", "is_deepspeed_enabled", "tools")
    assert ("rolltree.trl.attach(trainer)" in str(told.value)) == other_way


def test_a_cache_without_speculation_is_a_mistake():
    with pytest.raises(InvalidInputError, match="speculate"):
        RolloutFunction(cache=RolloutCache(), speculate=False)


def test_completions_do_not_depend_on_drafts(trainer):
    cache = RolloutCache()
    outputs = [
        plain()(PROMPTS, trainer),
        fast(cache=cache)(PROMPTS, trainer),
        fast(cache=cache, slots=5)(PROMPTS, trainer),
    ]
    assert outputs[0]["completion_ids"] == outputs[1]["completion_ids"] == outputs[2]["completion_ids"]
    assert outputs[0]["prompt_ids"] == [trainer.processing_class(text)["input_ids"] for text in PROMPTS]


def test_every_completion_is_its_own_draw(trainer):
    rollout = plain()
    first, again = (rollout(PROMPTS, trainer)["completion_ids"] for _ in range(2))
    trainer.state.global_step = 1
    later = rollout(PROMPTS, trainer)["completion_ids"]
    every = [tuple(ids) for ids in first + again + later]
    assert len(set(every)) > 0.9 * len(every)


def test_resuming_at_a_step_repeats_its_completions(trainer):
    trainer.state.global_step = 7
    assert plain()(PROMPTS, trainer)["completion_ids"] == plain()(PROMPTS, trainer)["completion_ids"]


def test_logprobs_are_those_of_the_model(trainer, model):
    output = plain()(PROMPTS[:4], trainer)
    for prompt, completion, logprobs in zip(
        *(output[k] for k in ("prompt_ids", "completion_ids", "logprobs")), strict=True
    ):
        with torch.no_grad():
            logits = model.eval()(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-4, rtol=0)


def test_history_counts_and_the_trainer_logs(trainer):
    rollout = fast()
    tokens = sum(map(len, rollout(PROMPTS, trainer)["completion_ids"]))
    trainer.state.global_step = 1
    trainer.model.eval()
    tokens += sum(map(len, rollout(PROMPTS, trainer)["completion_ids"]))
    first, second = rollout.history
    assert (first.step, first.training, second.step, second.training) == (0, True, 1, False)
    both = total(rollout.history)
    assert (both.tokens, both.sequences) == (tokens, 2 * len(PROMPTS))
    assert both.row_steps == first.row_steps + second.row_steps
    assert both.tokens_per_step == tokens / both.row_steps > 1
    assert 0 < second.accepted <= second.drafted
    assert first.engine.estimated_seconds_plain == 0, "a cost that was given may be another machine's"
    assert second.tokens_per_step > first.tokens_per_step
    assert trainer._metrics["train"]["rolltree/tokens_per_step"] == [first.tokens_per_step]
    assert trainer._metrics["eval"]["rolltree/tokens_per_step"] == [second.tokens_per_step]


def test_records_with_nothing_in_them_have_ratios():
    record = RolloutRecord(step=0, training=True, sequences=0, seconds=0.0)
    assert record.acceptance_rate == record.tokens_per_step == 0


def test_the_cache_hears_the_policy_version(trainer):
    rollout = fast()
    trainer.state.global_step = 5
    rollout(PROMPTS, trainer)
    assert rollout.cache.version == 5
    assert plain().cache is None


def state_of(model):
    return model.training, model.config._attn_implementation, [p.requires_grad for p in model.parameters()]


def test_the_model_is_left_as_found(trainer, model):
    before, weights = state_of(model), {name: t.clone() for name, t in model.state_dict().items()}
    noise = torch.random.get_rng_state(), random.getstate()
    measured = fast(cost="measure")
    measured(PROMPTS, trainer)
    assert "rolltree/estimated_time_saved" in measured.history[0].metrics()
    assert state_of(model) == before == (True, "sdpa", [True] * len(before[2]))
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), noise[0])
    assert random.getstate() == noise[1]
    model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_model_is_left_as_found_when_generation_breaks(trainer, model, monkeypatch):
    before = state_of(model)

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(model.model.layers[0].mlp, "forward", broken)
    with pytest.raises(ZeroDivisionError):
        fast()(PROMPTS, trainer)
    assert state_of(model) == before
    assert torch.is_grad_enabled()


def test_a_failed_completion_is_an_error_not_an_empty_row(trainer):
    with pytest.raises(RequestError, match="rollout 1 of 2"):
        plain()([PROMPTS[0], "sum" + " 12" * 200], trainer)


def train(model, rollout, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    problems = sample_problems(4, 11)
    data = datasets.Dataset.from_dict(
        {"prompt": [p.prompt for p in problems], "numbers": [p.numbers for p in problems]}
    )
    args = trl.GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8, num_generations=4,
        max_completion_length=150, num_train_epochs=2, learning_rate=1e-3, logging_steps=1, save_strategy="no",
        report_to="none", gradient_checkpointing=False, disable_tqdm=True, eval_strategy="epoch",
        per_device_eval_batch_size=8,
    )  # fmt: skip

    def reward(completions, numbers, **_):
        return [Problem(tuple(n)).reward(c) - len(c) / 100 for n, c in zip(numbers, completions, strict=True)]

    trainer = trl.GRPOTrainer(
        model=model, reward_funcs=reward, args=args, train_dataset=data, eval_dataset=data,
        processing_class=load_tokenizer(), rollout_func=rollout,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_real_grpo_run_ends_in_the_same_weights(tmp_path):
    start = load_model().state_dict()
    runs = [train(load_model(), rollout, tmp_path) for rollout in (plain(), fast())]
    weights = [run.model.state_dict() for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in start)
    assert any(not torch.equal(weights[0][name], start[name]) for name in start)
    rewards = [[line["reward"] for line in run.state.log_history if "reward" in line] for run in runs]
    assert rewards[0] == rewards[1]
    speculative = runs[1].rollout_func
    assert [record.step for record in speculative.history if record.training] == [0, 1, 2, 3]
    assert total(speculative.history).accepted > 0
    logged = [
        line["rolltree/tokens_per_step"] for line in runs[1].state.log_history if "rolltree/tokens_per_step" in line
    ]
    assert logged == [record.tokens_per_step for record in speculative.history if record.training]
    assert any("eval_rolltree/tokens_per_step" in line for line in runs[1].state.log_history)


class Killed(Exception):
    pass


def train_with(store, tmp_path, *, checkpoint=None, die_at=None):
    """GRPO with checkpoints at each step; returns the rollout function, or raises Killed in the middle of a step."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rollout = fast(slots=8, seed=5, store=store)

    def roll_out(prompts, trainer):
        output = rollout(prompts, trainer)
        if trainer.state.global_step == die_at:
            raise Killed
        return output

    rows = [{"prompt": problem.prompt} for problem in sample_problems(1, 3)]  # one: TRL shuffles anew when it resumes
    args = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, seed=3, per_device_train_batch_size=8, num_generations=8,
        max_completion_length=24, max_steps=4, learning_rate=1e-4, gradient_checkpointing=False, report_to="none",
        save_strategy="steps", save_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=load_model(), reward_funcs=lambda completions, **_: [float(len(c)) for c in completions], args=args,
        train_dataset=Dataset.from_list(rows), processing_class=load_tokenizer(), rollout_func=roll_out,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint)
    return rollout


def test_a_killed_training_goes_on_with_its_cache(tmp_path):
    with RolloutStore(tmp_path / "rollouts.db") as store:
        with pytest.raises(Killed):
            train_with(store, tmp_path, die_at=3)
        before = list(store)
        assert [r.version for r in before] == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8
        assert all(r.logprobs is not None and len(r.logprobs) == len(r.token_ids) for r in before)
    with RolloutStore(tmp_path / "rollouts.db") as store:  # another process would open it anew
        resumed = train_with(store, tmp_path, checkpoint=str(tmp_path / "checkpoint-2"))
        again = list(store)[32:]
        assert [r.version for r in again] == [2] * 8 + [3] * 8
        assert sorted(r.token_ids.tolist() for r in again) == sorted(r.token_ids.tolist() for r in before[16:])
        first = resumed.history[0]
        assert first.step == 2
        assert first.tokens_per_step > 6  # it had made these very rollouts before it was killed; 1.4 with a new cache


def test_without_speculation_a_store_records_as_well(trainer, tmp_path):
    with RolloutStore(tmp_path / "a.db") as a, RolloutStore(tmp_path / "b.db") as b:
        trainer.state.global_step = 7
        slow, quick = RolloutFunction(speculate=False, slots=12, store=a), fast(store=b)
        assert slow(PROMPTS, trainer)["completion_ids"] == quick(PROMPTS, trainer)["completion_ids"]
        one, two = (sorted((r.token_ids.tolist(), r.version) for r in s) for s in (a, b))
        assert one == two
        assert len(one) == len(PROMPTS)
        assert all(r.logprobs is not None for s in (a, b) for r in s)
        with pytest.raises(InvalidInputError, match=r"RolloutCache\(store=store\)"):
            RolloutFunction(cache=RolloutCache(), store=a)
        with pytest.raises(InvalidInputError, match=r"engine\.store"):
            Engine(trainer.model, drafter=TreeDrafter(RolloutCache(store=b)), store=a)


def test_metrics_of_a_run_are_written_for_the_report(trainer, tmp_path):
    callbacks = []
    trainer.add_callback = callbacks.append
    rollout = fast(run_dir=tmp_path)
    for step in (0, 1):
        trainer.state.global_step = step
        rollout(PROMPTS, trainer)
    trainer.state.global_step = 2
    callbacks[0].on_log(None, trainer.state, None, {"reward": 0.75})
    rollout(PROMPTS, trainer)
    assert len(callbacks) == 1
    rows = steps(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [row["ratios"]["tokens_per_step"] for row in rows] == [r.tokens_per_step for r in rollout.history]
    assert rows[1]["gauges"]["reward"] == 0.75
    assert rows[1]["gauges"]["cached_rollouts"] == 2 * len(PROMPTS)
    accepted = [sum(v for k, v in row["sums"].items() if k.startswith("accepted_")) for row in rows]
    # A drafted end token is accepted, and has no token of the sampler after it.
    differences = [a - row["sums"]["accepted"] for a, row in zip(accepted, rows, strict=True)]
    assert all(0 <= d <= len(PROMPTS) for d in differences)
    trainer.accelerator.process_index = 1
    fast(run_dir=tmp_path / "other")(PROMPTS, trainer)
    assert not (tmp_path / "other").exists()
