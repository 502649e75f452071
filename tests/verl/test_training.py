"""Real trainings by verl on this CPU, with rolltree and without: same samples, and rolltree at work."""

from __future__ import annotations

import json
from collections import Counter
from statistics import fmean

import pytest

from rolltree.verl.cpu.demo import document, passed
from rolltree.verl.cpu.run import Rollout, RunRecord
from tests.verl.runs import AHEAD, ASYNC, CUT, DAPO, GRPO, MULTI_TURN, PPO, RUNS, Runs

SAMPLED = ("grpo", "dapo")
GREEDY = ("ppo", "multi-turn")
SETTINGS = {"grpo": GRPO, "dapo": DAPO, "ppo": PPO, "multi-turn": MULTI_TURN, "async": ASYNC, "ahead": AHEAD}
Z_LIMIT = 4.5
"""Two-sided false alarms of 7 in a million for each comparison."""


def texts(rollouts: list[Rollout], step: int) -> Counter[tuple[str, str]]:
    return Counter((rollout.prompt, rollout.text) for rollout in rollouts if rollout.step == step)


def epoch_means(record: RunRecord, metric: str, steps: int) -> list[float]:
    values = record.values(metric)
    return [fmean(values[start : start + steps]) for start in range(0, len(values), steps)]


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_rollouts_and_losses_are_the_same(runs: Runs, name: str) -> None:
    """Weights move in every step, so one differing token would spread."""
    mine, plain = runs[name], runs[f"{name} plain"]
    settings = SETTINGS[name]
    for step in range(1, settings.steps + 1):
        expected = texts(plain.rollouts, step)
        assert sum(expected.values()) == settings.batch * settings.samples
        assert texts(mine.rollouts, step) == expected, f"step {step}"
    for step in (0, settings.steps_per_epoch, settings.steps):
        assert texts(mine.validation, step) == texts(plain.validation, step) != Counter(), (
            f"validation after step {step}"
        )
    losses = ["actor/pg_loss", "actor/grad_norm", "actor/entropy", "critic/score/mean"]
    losses += ["critic/vf_loss"] if name == "ppo" else []
    for metric in losses:
        assert mine.values(metric) == pytest.approx(plain.values(metric), rel=1e-3, abs=1e-5), metric
    assert len(set(plain.values("actor/grad_norm"))) == settings.steps, "the weights did not move"


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_rewards_and_losses_agree(runs: Runs, name: str) -> None:
    """Other random numbers, the same distribution: rewards, lengths and the policy's entropy."""
    mine, plain = runs[name], runs[f"{name} plain"]
    for measure in (lambda rollout: rollout.score, lambda rollout: len(rollout.text)):
        ours, theirs = ([float(measure(r)) for r in record.rollouts] for record in (mine, plain))
        assert abs(z_score(ours, theirs)) < Z_LIMIT
    for metric in ("actor/entropy", "actor/grad_norm"):
        assert fmean(mine.values(metric)) == pytest.approx(fmean(plain.values(metric)), rel=0.35), metric
    assert fmean(mine.values("training/rollout_probs_diff_mean")) < 0.01, (
        "the engine's probabilities are not the actor's"
    )


def z_score(ours: list[float], theirs: list[float]) -> float:
    """Of the difference of means, as if rollouts were independent: those of a prompt are alike, so it is generous."""
    variance = sum(sum((x - fmean(xs)) ** 2 for x in xs) / (len(xs) - 1) / len(xs) for xs in (ours, theirs))
    return (fmean(ours) - fmean(theirs)) / variance**0.5


@pytest.mark.parametrize("name", [*SAMPLED, *GREEDY, "async", "ahead"])
def test_every_step_is_trained_and_rolltree_is_healthy(runs: Runs, name: str) -> None:
    record, settings = runs[name], SETTINGS[name]
    assert record.values("step") == list(range(1, settings.steps + 1))
    assert record.values("rolltree/errors") == [0] * settings.steps
    assert record.values("rolltree/rpc_failures") == [0] * settings.steps
    assert record.values("rolltree/replicas") == [settings.replicas] * settings.steps
    assert min(record.values("rolltree/tree_bytes")) > 0
    assert all(abs(saved) < 60 for saved in record.values("rolltree/seconds_saved"))


@pytest.mark.parametrize("name", [*SAMPLED, *GREEDY, "async"])
def test_the_second_epoch_drafts_better(runs: Runs, name: str) -> None:
    """Quotients of sums: in a step of an asynchronous trainer nothing may be generated."""
    tokens, row_steps, history = (
        epoch_means(runs[name], f"rolltree/{metric}", SETTINGS[name].steps_per_epoch)
        for metric in ("tokens", "row_steps", "accepted_history")
    )
    assert tokens[1] / row_steps[1] > tokens[0] / row_steps[0] > 1
    assert history[1] > 0, "nothing was drafted from the first epoch's text"


@pytest.mark.parametrize("name", ["grpo", "ppo", "multi-turn", "ahead"])
def test_no_request_is_leaked(runs: Runs, name: str) -> None:
    """Those that ended in the engine's last step are closed by its next; none stays longer."""
    settings = SETTINGS[name]
    assert max(runs[name].values("rolltree/sessions")) <= settings.batch * settings.samples


def test_validation_reads_and_does_not_write(runs: Runs) -> None:
    """Every training rollout is in a tree or still open, and nothing else is: validation of 4 prompts ran before."""
    record = runs["grpo"]
    trained = GRPO.batch * GRPO.samples
    held = [a + b for a, b in zip(record.values("rolltree/rollouts"), record.values("rolltree/sessions"), strict=True)]
    assert held == [trained * step for step in range(1, GRPO.steps + 1)]
    drafted = record.values("rolltree/validation_tokens")
    assert drafted[0] > 0, "validation before training carried no mark"
    assert texts(record.validation, 0) == texts(runs["grpo plain"].validation, 0)


def test_multi_turn_calls_the_calculator(runs: Runs) -> None:
    """Three turns of the model or more: verl counts those of the tool and of the user as well."""
    record = runs["multi-turn"]
    assert max(record.values("training/num_turns/max")) >= 6
    assert min(record.values("training/num_turns/mean")) > 4
    assert any(" gives " in rollout.text for rollout in record.rollouts)


def test_later_turns_draft_from_the_first_turns_tree(runs: Runs) -> None:
    """A tree a prompt and epoch-spanning keys: turns with keys of their own would make a tree each."""
    assert runs["multi-turn"].values("rolltree/prompts")[-1] == MULTI_TURN.prompts


def test_dapo_filters_groups(runs: Runs) -> None:
    """Groups of equal rewards were evicted and replaced in both runs: the filter's arguments reached verl's sampler."""
    for name in ("dapo", "dapo plain"):
        evicted = [step.get("training/filter_groups/evicted_samples", 0) for step in runs[name].metrics]
        assert sum(evicted) > 0


def test_async_prompts_stay_on_their_replica(runs: Runs) -> None:
    """Two replicas: each prompt's tree is on one of them, also after aborts and in the second epoch, with few moves."""
    record = runs["async"]
    assert record.values("rolltree/prompts")[-1] <= 1.25 * ASYNC.prompts


def test_run_ahead_is_used_and_never_seen_by_the_trainer(runs: Runs) -> None:
    """Prompts of the next step are run ahead once the step time is known, and drafted from when they are sampled."""
    record = runs["ahead"]
    launched, tokens = record.values("rolltree/run_ahead_launched"), record.values("rolltree/run_ahead_tokens")
    assert launched[0] == tokens[0] == 0, "the first step's requests are not watched"
    assert launched[1] > 0
    assert tokens[1] > 0
    assert record.values("rolltree/run_ahead_prompts_used")[2] > 0
    assert record.values("rolltree/accepted_run_ahead")[2] > 0
    assert record.values("rolltree/run_ahead_failures") == [0] * AHEAD.steps
    for step in range(1, AHEAD.steps + 1):
        counts = Counter(rollout.prompt for rollout in record.rollouts if rollout.step == step)
        assert list(counts.values()) == [AHEAD.samples] * AHEAD.batch


def test_looking_ahead_changes_no_data_order(runs: Runs) -> None:
    """Saved in mid-epoch with a batch looked at, resumed without run-ahead: the next step gets that very batch."""

    def prompts(record: RunRecord, step: int) -> set[str]:
        return {rollout.prompt for rollout in record.rollouts if rollout.step == step}

    ahead, resumed = runs["ahead"], runs["ahead resumed"]
    assert [step["step"] for step in resumed.metrics] == list(range(CUT + 1, AHEAD.steps + 1))
    for step in range(CUT + 1, AHEAD.steps + 1):
        assert prompts(resumed, step) == prompts(ahead, step)
    epochs = [[prompts(ahead, step) for step in range(start, start + 3)] for start in (1, 4)]
    for epoch in epochs:
        assert len(set.union(*epoch)) == AHEAD.prompts, "a prompt was left out or came twice"
    assert epochs[0] != epochs[1], "the data was not shuffled: the comparison says nothing"


def test_asynchronous_trainers_do_not_run_ahead_and_say_so(runs: Runs) -> None:
    record = runs["async"]
    assert "run_ahead is off" in record.output
    assert record.values("rolltree/run_ahead_tokens") == [0] * ASYNC.steps
    assert "rolltree/run_ahead_launched" not in record.metrics[0]


def test_the_demos_document_compares_the_two_runs(runs: Runs) -> None:
    """What `rolltree verl-demo` would print of these runs."""
    made = document(GRPO, runs["grpo"], runs["grpo plain"], RUNS["grpo"][1], 1.0)
    assert passed(made)
    assert made["greedy_rollouts"] == made["identical_greedy_rollouts"] == 4
    assert [row["epoch"] for row in made["epochs"]] == [1, 2]
    assert made["epochs"][1]["tokens_per_step"] > made["epochs"][0]["tokens_per_step"]
    json.dumps(made)
