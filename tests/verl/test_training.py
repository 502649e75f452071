"""Real trainings by verl on this CPU, with rolltree and without: same samples, and rolltree at work.

Six trainings by default; `slow` has each algorithm alone, with and without (`make verl-test-all`). No verdict depends
on the speed of the machine. Greedy comparisons ask for equality: prompts, first weights and data order are fixed, and
of the 3,208 tokens of `turns`, each with the weights of its step, the closest call between the two likeliest is 0.0011
in logits: a hundred times what another batch shape was seen to change in float32.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import accumulate
from statistics import fmean
from typing import Any

import pytest

from rolltree.store import verify
from tests.verl.runs import AHEAD, ASYNC, COUPLED, CUT, KEPT, RUNS, SAVED, SETTINGS, SPLIT, Runs
from tests.verl.test_lines import configured
from tests.verl_on_cpu.demo import document, passed
from tests.verl_on_cpu.run import Rollout, RunRecord

Z_LIMIT = 4.5
"""Two-sided false alarms of 7 in a million for each comparison."""


def trainings(*names: str, slow: tuple[str, ...] = (), plain: bool = False) -> Any:
    """Parametrize by training; `plain` compares it with the one without rolltree."""
    made = []
    for name in (*names, *slow):
        marks = [pytest.mark.trainings(name, *[f"{name} plain"] * plain), *[pytest.mark.slow] * (name in slow)]
        made.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("name", made)


def texts(rollouts: list[Rollout], step: int) -> Counter[tuple[str, str, float]]:
    """Prompts, texts and rewards of a step."""
    return Counter((rollout.prompt, rollout.text, rollout.score) for rollout in rollouts if rollout.step == step)


def epoch_means(record: RunRecord, metric: str, steps: int) -> list[float]:
    values = record.values(metric)
    return [fmean(values[start : start + steps]) for start in range(0, len(values), steps)]


@trainings("turns", slow=("ppo", "multi-turn", "wide"), plain=True)
def test_greedy_rollouts_and_losses_are_the_same(runs: Runs, name: str) -> None:
    """Weights move in every step, so one differing token would spread."""
    mine, plain = runs[name], runs[f"{name} plain"]
    settings = SETTINGS[name]
    for step in range(1, settings.steps + 1):
        expected = texts(plain.rollouts, step)
        assert sum(expected.values()) == settings.batch * settings.samples
        assert texts(mine.rollouts, step) == expected, f"step {step}"
    losses = ["actor/pg_loss", "actor/grad_norm", "actor/entropy", "critic/score/mean"]
    losses += ["critic/vf_loss"] if settings.algorithm == "ppo" else []
    for metric in losses:
        assert mine.values(metric) == pytest.approx(plain.values(metric), rel=1e-3, abs=1e-5), metric
    assert len(set(plain.values("actor/grad_norm"))) == settings.steps, "the weights did not move"


@pytest.mark.trainings("coupled", "coupled plain")
def test_coupled_rollouts_at_temperature_1_are_the_same(runs: Runs) -> None:
    """With drafts and without, whichever of a group's samples two agent loop workers send first; weights move.

    A token is that whose logit and noise are most together. Another batch shape rounds logits by some 1e-6, so with
    probability 1e-6 (1 - sum of squared probabilities) another one is drawn: once in 1,000 trainings of 13,000 tokens
    like these, were their seeds not always the same. So no difference is allowed.
    """
    mine, plain = runs["coupled"], runs["coupled plain"]
    rows = COUPLED.batch * COUPLED.samples
    for step in range(1, COUPLED.steps + 1):
        expected = texts(plain.rollouts, step)
        assert sum(expected.values()) == rows
        assert len(expected) > rows // 2, "samples of a prompt are alike: the comparison says little"
        assert texts(mine.rollouts, step) == expected, f"step {step}"
    for metric in ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "critic/score/mean", "response_length/mean"):
        assert mine.values(metric) == pytest.approx(plain.values(metric), rel=1e-3, abs=1e-5), metric
    assert len(set(plain.values("actor/grad_norm"))) == COUPLED.steps, "the weights did not move"
    assert min(mine.values("rolltree/accepted")) > 500
    assert max(plain.values("rolltree/drafted")) == 0


@pytest.mark.trainings("coupled", "coupled plain")
def test_coupling_reaches_verls_engines_by_the_adapters_option(runs: Runs) -> None:
    """Every request of the training got a derived seed, with drafts and without."""
    for name in ("coupled", "coupled plain"):
        assert "rolltree.coupled=True (it was not set)" in runs[name].output
        assert runs[name].values("rolltree/derived_seeds") == [COUPLED.batch * COUPLED.samples] * COUPLED.steps
        assert runs[name].values("rolltree/errors") == [0] * COUPLED.steps


@pytest.mark.slow
@pytest.mark.trainings("split")
def test_replicas_of_one_seed_do_not_sample_a_group_twice(runs: Runs) -> None:
    """They count a prompt's requests each from 0 on; their number differs. Short samples may be equal by chance."""
    record, rows = runs["split"], SPLIT.batch * SPLIT.samples
    assert record.values("rolltree/replicas") == [2] * SPLIT.steps
    for step in range(1, SPLIT.steps + 1):
        assert len(texts(record.rollouts, step)) >= rows - 2


@pytest.mark.trainings("turns", "turns plain")
def test_validation_at_random_has_the_same_distribution(runs: Runs) -> None:
    """The weights are the same, so what both generate at temperature 1 are draws from one distribution.

    Draws of a prompt are independent; taken for draws of one kind, their variance counts as too large if anything.
    """
    mine, plain = runs["turns"].validation, runs["turns plain"].validation
    assert len(mine) == len(plain) == 3 * 4 * 16
    assert len({rollout.text for rollout in mine}) > 3 * 4, "validation was greedy"
    assert_same_means(mine, plain)


@trainings(slow=("grpo", "dapo"), plain=True)
def test_sampled_rewards_and_lengths_agree(runs: Runs, name: str) -> None:
    """Other random numbers, the same distribution."""
    assert_same_means(runs[name].rollouts, runs[f"{name} plain"].rollouts)


@trainings("ahead", slow=("grpo", "dapo"))
def test_the_engines_probabilities_are_the_actors(runs: Runs, name: str) -> None:
    """Of what was sampled; some thousandths are the actor's bfloat16."""
    assert fmean(runs[name].values("training/rollout_probs_diff_mean")) < 0.01


def assert_same_means(mine: list[Rollout], plain: list[Rollout]) -> None:
    for measure in (lambda rollout: rollout.score, lambda rollout: len(rollout.text)):
        ours, theirs = ([float(measure(r)) for r in rollouts] for rollouts in (mine, plain))
        assert abs(z_score(ours, theirs)) < Z_LIMIT


def z_score(ours: list[float], theirs: list[float]) -> float:
    """Of the difference of means, as if rollouts were independent."""
    variance = sum(sum((x - fmean(xs)) ** 2 for x in xs) / (len(xs) - 1) / len(xs) for xs in (ours, theirs))
    assert variance > 0, "all alike: the comparison says nothing"
    return (fmean(ours) - fmean(theirs)) / variance**0.5


@trainings("turns", "ahead", "async", slow=("grpo", "dapo", "ppo", "multi-turn"))
def test_every_step_is_trained_and_rolltree_is_healthy(runs: Runs, name: str) -> None:
    record, settings = runs[name], SETTINGS[name]
    assert record.values("step") == list(range(1, settings.steps + 1))
    assert record.values("rolltree/errors") == [0] * settings.steps
    assert record.values("rolltree/rpc_failures") == [0] * settings.steps
    assert record.values("rolltree/replicas") == [settings.replicas] * settings.steps
    assert min(record.values("rolltree/tree_bytes")) > 0
    assert all(math.isfinite(saved) for saved in record.values("rolltree/seconds_saved"))


@trainings("turns", "ahead", "async", slow=("grpo", "dapo", "ppo", "multi-turn", "wide"))
def test_the_second_epoch_drafts_better(runs: Runs, name: str) -> None:
    """Quotients of sums: in a step of an asynchronous trainer nothing may be generated.

    With run-ahead the second epoch has less to gain, and all that it does must be drafted from somewhere.
    """
    tokens, row_steps, history = (
        epoch_means(runs[name], f"rolltree/{metric}", SETTINGS[name].steps_per_epoch)
        for metric in ("tokens", "row_steps", "accepted_history")
    )
    assert tokens[1] / row_steps[1] > tokens[0] / row_steps[0] > 1
    assert history[1] > 0, "nothing was drafted from the first epoch's text"


@trainings("turns", "ahead", slow=("grpo", "ppo", "multi-turn"))
def test_no_request_is_leaked(runs: Runs, name: str) -> None:
    """Those that ended in the engine's last step are closed by its next; none stays longer."""
    settings = SETTINGS[name]
    ahead = 2 * settings.batch if name == "ahead" else 0  # cancelled when the step ended
    assert max(runs[name].values("rolltree/sessions")) <= settings.batch * settings.samples + ahead


@trainings("turns", slow=("grpo",), plain=False)
def test_validation_reads_and_does_not_write(runs: Runs, name: str) -> None:
    """Every turn of a training rollout is in a tree or still open, and nothing else is: validation ran before.

    verl counts the turns of everybody: one of the user, and from then on the model and the tool by turns.
    """
    record, settings = runs[name], SETTINGS[name]
    rows = settings.batch * settings.samples
    trained = accumulate(round(turns * rows / 2) for turns in record.values("training/num_turns/mean"))
    held = [a + b for a, b in zip(record.values("rolltree/rollouts"), record.values("rolltree/sessions"), strict=True)]
    assert held == list(trained)
    assert record.values("rolltree/validation_tokens")[0] > 0, "validation before training carried no mark"


@pytest.mark.slow
@pytest.mark.trainings("grpo", "grpo plain", "ppo", "ppo plain", "multi-turn", "multi-turn plain")
def test_greedy_validation_is_the_same(runs: Runs) -> None:
    """Where the weights are: before the training, and after each epoch of those with greedy rollouts."""
    for name, steps in (("grpo", (0,)), ("ppo", (0, 2, 4)), ("multi-turn", (0, 2, 4))):
        for step in steps:
            expected = texts(runs[f"{name} plain"].validation, step)
            assert texts(runs[name].validation, step) == expected != Counter(), f"{name} after step {step}"


@trainings("turns", slow=("multi-turn",))
def test_multi_turn_calls_the_calculator(runs: Runs, name: str) -> None:
    """Three turns of the model or more: verl counts those of the tool and of the user as well."""
    record = runs[name]
    assert max(record.values("training/num_turns/max")) >= 6
    assert min(record.values("training/num_turns/mean")) > 4
    assert any(" gives " in rollout.text for rollout in record.rollouts)


@trainings("turns", slow=("multi-turn",))
def test_later_turns_draft_from_the_first_turns_tree(runs: Runs, name: str) -> None:
    """A tree a prompt and epoch-spanning keys: turns with keys of their own would make a tree each."""
    assert runs[name].values("rolltree/prompts")[-1] == SETTINGS[name].prompts


@trainings("async", slow=("dapo", "dapo plain"))
def test_dapo_filters_groups(runs: Runs, name: str) -> None:
    """Groups of equal rewards were evicted and replaced: the filter's arguments reached verl's sampler.

    Of two samples with a mean reward of 0.4 more than half are equal: none of 16 groups, 1 in 100,000 runs.
    """
    evicted = [step.get("training/filter_groups/evicted_samples", 0) for step in runs[name].metrics]
    assert sum(evicted) > 0


@pytest.mark.trainings("async")
def test_async_prompts_stay_on_their_replica(runs: Runs) -> None:
    """Two replicas, no bound on the load: each prompt's tree is on one of them, also after aborts and in the second
    epoch. (A bound lets some move, how many depends on who is faster; `tests/test_verl_router.py` counts them.)
    """
    record = runs["async"]
    assert record.values("rolltree/prompts")[-1] == ASYNC.prompts
    assert "router_config_path" not in "".join(line for line in record.output.splitlines() if "rolltree sets" in line)


@pytest.mark.slow
@pytest.mark.trainings("shared")
def test_replicas_draft_from_each_others_rollouts(runs: Runs) -> None:
    """By Ray, between the engines of two servers."""
    sums = {name: sum(runs["shared"].values(f"rolltree/{name}")) for name in SHARING}
    assert sums["shared_received"] > 0
    assert sums["shared_rollouts"] > 0
    assert sums["shared_sent"] >= sums["shared_received"]
    assert (sums["shared_refused"], sums["shared_failures"], sums["errors"]) == (0, 0, 0)


SHARING = ("shared_received", "shared_rollouts", "shared_sent", "shared_refused", "shared_failures", "errors")


@pytest.mark.trainings("ahead")
def test_run_ahead_is_used_and_never_seen_by_the_trainer(runs: Runs) -> None:
    """Prompts of the next step are run ahead once the step time is known, and drafted from when they are sampled."""
    record = runs["ahead"]
    launched, tokens = record.values("rolltree/run_ahead_launched"), record.values("rolltree/run_ahead_tokens")
    assert launched[0] == tokens[0] == 0, "the first step's requests are not watched"
    assert sum(launched) > 0
    assert sum(tokens) > 0
    assert sum(record.values("rolltree/run_ahead_prompts_used")) > 0
    assert sum(record.values("rolltree/accepted_run_ahead")) > 0
    assert record.values("rolltree/run_ahead_failures") == [0] * AHEAD.steps
    for step in range(1, AHEAD.steps + 1):
        counts = Counter(rollout.prompt for rollout in record.rollouts if rollout.step == step)
        assert list(counts.values()) == [AHEAD.samples] * AHEAD.batch


def prompts(record: RunRecord, step: int) -> set[str]:
    return {rollout.prompt for rollout in record.rollouts if rollout.step == step}


@pytest.mark.trainings("ahead")
def test_looking_ahead_changes_no_data_order(runs: Runs) -> None:
    """Each epoch has each prompt once, and the checkpoint in mid-epoch, saved with a batch looked at, goes on with the
    very batches that the training went on with: verl's own loader, made anew from it, gives them.
    """
    record = runs["ahead"]
    epochs = [[prompts(record, step) for step in range(start, start + 3)] for start in (1, 4)]
    for epoch in epochs:
        assert len(set.union(*epoch)) == AHEAD.prompts, "a prompt was left out or came twice"
    assert epochs[0] != epochs[1], "the data was not shuffled: the comparison says nothing"
    resumed = batches_from(runs, AHEAD.steps - CUT)
    assert resumed == [prompts(record, step) for step in range(CUT + 1, AHEAD.steps + 1)]


def batches_from(runs: Runs, count: int) -> list[set[str]]:
    """The prompts of the batches that verl's loader gives from the checkpoint on, as in its `_init_dataloader`."""
    import torch
    from torchdata.stateful_dataloader import StatefulDataLoader
    from transformers import AutoTokenizer
    from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
    from verl.utils.dataset.rl_dataset import collate_fn

    files = runs.folder / "ahead" / "assets"
    given = [line for line in AHEAD.extra if line.startswith("data.")]
    data = configured(*given, f"data.train_files={files / 'train.parquet'}", "data.return_raw_chat=True").data
    tokenizer = AutoTokenizer.from_pretrained(files / "model")
    rows = create_rl_dataset(data.train_files, data, tokenizer, None, is_train=True)
    loader = StatefulDataLoader(
        rows, batch_size=AHEAD.batch, drop_last=True, collate_fn=collate_fn, sampler=create_rl_sampler(data, rows)
    )
    loader.load_state_dict(torch.load(runs.checkpoint() / "data.pt", weights_only=False))
    iterator = iter(loader)
    made = [[row[0]["content"] for row in next(iterator)["raw_prompt"]] for _ in range(count)]
    return [set(batch) for batch in made]


@pytest.mark.slow
@pytest.mark.trainings("ahead", "ahead resumed")
def test_a_resumed_training_gets_the_batches_that_were_looked_at(runs: Runs) -> None:
    """Saved in mid-epoch with a batch looked at, resumed without run-ahead: the next step gets that very batch."""
    ahead, resumed = runs["ahead"], runs["ahead resumed"]
    assert [step["step"] for step in resumed.metrics] == list(range(CUT + 1, AHEAD.steps + 1))
    for step in range(CUT + 1, AHEAD.steps + 1):
        assert prompts(resumed, step) == prompts(ahead, step)


@pytest.mark.slow
@pytest.mark.trainings("kept", "kept resumed")
def test_a_killed_training_resumes_with_its_trees(runs: Runs) -> None:
    """kill -9 of all its processes while a step generates; the first resumed step drafts as the step before did."""
    killed, resumed = runs["kept"], runs["kept resumed"]
    assert [step["step"] for step in killed.metrics] == list(range(1, SAVED + 1))
    assert [step["step"] for step in resumed.metrics] == list(range(SAVED + 1, KEPT.steps + 1))
    before, after = killed.values("rolltree/tokens_per_step"), resumed.values("rolltree/tokens_per_step")
    assert before[-1] > 1.05 * before[0], "earlier epochs bring nothing: the comparison says nothing"
    assert after[0] >= 0.95 * before[-1]
    assert resumed.values("rolltree/cache_rebuilt_prompts")[0] == KEPT.prompts
    assert verify(runs.store) == []


@pytest.mark.trainings("async")
def test_asynchronous_trainers_do_not_run_ahead_and_say_so(runs: Runs) -> None:
    record = runs["async"]
    assert "run_ahead is off" in record.output
    assert record.values("rolltree/run_ahead_tokens") == [0] * ASYNC.steps
    assert "rolltree/run_ahead_launched" not in record.metrics[0]


@pytest.mark.slow
@pytest.mark.trainings("deaf")
def test_a_training_whose_calls_are_all_given_up_goes_on(runs: Runs) -> None:
    """A millisecond is not enough for an answer; rollouts are drafted for and trained on all the same."""
    record = runs["deaf"]
    settings = SETTINGS["deaf"]
    assert record.values("step") == list(range(1, settings.steps + 1))
    assert len(record.rollouts) == settings.steps * settings.batch * settings.samples
    assert record.values("rolltree/rpc_failures")[-1] > 0
    assert 1 <= record.output.count("A call to a vLLM server failed") <= 2, "once for numbers, once for run-ahead"


@pytest.mark.trainings("turns", "turns plain")
def test_the_demos_document_compares_the_two_runs(runs: Runs) -> None:
    """What `make verl-demo` would print of these runs, had the first step been its greedy validation."""
    mine, plain = (
        replace(record, validation=[replace(r, step=0) for r in record.rollouts if r.step == 1])
        for record in (runs["turns"], runs["turns plain"])
    )
    made = document(SETTINGS["turns"], mine, plain, RUNS["turns"][1], 1.0)
    assert passed(made)
    assert made["greedy_rollouts"] == made["identical_greedy_rollouts"] == SETTINGS["turns"].batch
    assert [row["epoch"] for row in made["epochs"]] == [1, 2]
    assert made["epochs"][1]["tokens_per_step"] > made["epochs"][0]["tokens_per_step"]
    json.dumps(made)
