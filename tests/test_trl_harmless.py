"""Real GRPO trainings whose metrics fail, or which evaluate in between: the training is that of stock TRL."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rolltree.budget import CostModel
from rolltree.demo.assets import load_model, load_tokenizer
from rolltree.errors import InvalidInputError
from rolltree.runlog import FILE, steps
from rolltree.store import RolloutStore
from rolltree.trl import RolloutFunction
from rolltree.trl.metrics_file import MetricsFile

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
FREE = CostModel(base=1.0, token=1e-6)
TRAIN = [f"sum {n} 34 = " for n in range(10, 14)]
EVAL = ["sum 80 1 = ", "sum 81 1 = "]
STEPS = 4
Reward = Callable[..., list[Any]]


def lengths(completions: list[str], **_: object) -> list[float]:
    return [float(len(text)) for text in completions]


def train(folder: Path, rollout: RolloutFunction, reward: Reward = lengths, **settings: Any) -> Any:
    args = trl.GRPOConfig(
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, per_device_train_batch_size=4, num_generations=2,
        max_completion_length=8, max_steps=STEPS, logging_steps=1, save_strategy="no", report_to="none", seed=3,
        gradient_checkpointing=False, disable_tqdm=True, per_device_eval_batch_size=2, **settings,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=load_model(), reward_funcs=reward, args=args, processing_class=load_tokenizer(), rollout_func=rollout,
        train_dataset=datasets.Dataset.from_dict({"prompt": TRAIN}),
        eval_dataset=datasets.Dataset.from_dict({"prompt": EVAL}),
    )  # fmt: skip
    trainer.train()
    return trainer


class Odd:
    """Rewards by length, except in one step."""

    def __init__(self, at: int, do: Callable[[], None] | None = None, value: object = None) -> None:
        self.at, self.do, self.value, self.calls = at, do, value, 0

    def __call__(self, completions: list[str], **_: object) -> list[Any]:
        self.calls += 1
        if self.calls == self.at:
            if self.do is None:
                return [self.value] * len(completions)
            self.do()
        return lengths(completions)

    __name__ = "odd"


@pytest.mark.parametrize("value", [None, float("nan")], ids=str)
def test_a_step_without_rewards_is_a_step_without_a_figure(value: object, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = train(tmp_path, RolloutFunction(run_dir=run, cost=FREE, slots=4), Odd(2, value=value))
    assert trainer.state.global_step == STEPS
    assert [row["gauges"].get("reward") is None for row in steps(run)] == [False, True, False, False]
    for line in (run / FILE).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_run_folder_that_goes_away_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    rollout = RolloutFunction(run_dir=run, cost=FREE, slots=4)
    with caplog.at_level(logging.WARNING, "rolltree"):
        trainer = train(tmp_path, rollout, Odd(2, do=lambda: shutil.rmtree(run)))
    assert trainer.state.global_step == STEPS
    assert [record.step for record in rollout.history] == list(range(STEPS))
    assert [str(run) in record.getMessage() for record in caplog.records if record.name.startswith("rolltree")] == [
        True
    ]


def test_a_run_folder_that_cannot_be_made_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "rolltree"):
        trainer = train(tmp_path, RolloutFunction(run_dir=tmp_path / "file" / "run", cost=FREE, slots=4))
    assert trainer.state.global_step == STEPS
    assert sum("Going on without" in record.getMessage() for record in caplog.records) == 1


def test_figures_that_cannot_be_had_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the adapter's own, wherever it gathers figures."""
    monkeypatch.setattr(MetricsFile, "_gauges", lambda self: 1 / 0)
    monkeypatch.setattr("rolltree.trl.history.RolloutRecord.metrics", lambda self: 1 / 0)
    rollout = RolloutFunction(run_dir=tmp_path / "run", cost=FREE, slots=4)
    assert train(tmp_path, rollout).state.global_step == STEPS
    assert len(rollout.history) == STEPS


@pytest.mark.parametrize("remember", [False, True])
def test_evaluation_is_drafted_for_and_not_remembered(remember: bool, tmp_path: Path) -> None:
    """Unless asked for: neither tree nor store has it, and the same completions come out."""
    tokenizer = load_tokenizer()
    made: dict[str, list[Any]] = {}

    def watch(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        for prompt, text in zip(prompts, completions, strict=True):
            made.setdefault(prompt, []).append(text)
        return lengths(completions)

    with RolloutStore(tmp_path / "rollouts.db") as store:
        rollout = RolloutFunction(cost=FREE, slots=4, store=store, remember_evaluation=remember)
        trainer = train(tmp_path, rollout, watch, eval_strategy="steps", eval_steps=1)
        store.flush()
        prompts = [tuple(r.prompt_token_ids.tolist()) for r in store]
    assert trainer.state.global_step == STEPS
    evaluated = [record for record in rollout.history if not record.training]
    assert len(evaluated) >= STEPS
    assert rollout.cache is not None
    for prompt in EVAL:
        ids = tokenizer(prompt)["input_ids"]
        count = len(made[prompt]) if remember else 0
        assert (rollout.cache.rollouts(ids), prompts.count(tuple(ids))) == (count, count)
    assert all(rollout.cache.rollouts(tokenizer(p)["input_ids"]) == len(made[p]) for p in TRAIN if p in made)
    assert rollout.cache.stats().sessions == 0
    assert sum(record.drafted for record in evaluated) > 0


def test_what_is_remembered_changes_no_completion(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 2}
    finals = [
        train(tmp_path, RolloutFunction(cost=FREE, slots=4, **kind), **settings).state.log_history
        for kind in ({}, {"remember_evaluation": True}, {"speculate": False})
    ]
    rewards = [[(line.get("reward"), line.get("eval_reward")) for line in log] for log in finals]
    assert rewards[0] == rewards[1] == rewards[2]
    assert any(evaluated is not None for _, evaluated in rewards[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("slots", 2.5), ("slots", 0), ("slots", True), ("seed", 1.5), ("cost", "fast"), ("draft", {"max_draft": 3}),
     ("cache", {}), ("store", "rollouts.db"), ("run_dir", 7)],
)  # fmt: skip
def test_arguments_are_checked_when_they_are_given(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=f"^{name} = "):
        RolloutFunction(**{name: value})  # type: ignore[arg-type]
