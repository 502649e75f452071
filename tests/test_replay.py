"""The simulated engine: its schedule, its clock, what it tells a drafter, and how it counts."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from rolltree.budget import CostModel
from rolltree.errors import InvalidInputError
from rolltree.replay import results
from rolltree.replay.budgets import GivenCost
from rolltree.replay.drafters import DrafterSpec, Limits, parse_drafters
from rolltree.replay.profiles import Load, Measured, Roofline, load_profile
from rolltree.replay.records import Recording, Selection, TrainingStep
from rolltree.replay.results import StepRun
from rolltree.replay.run import ReplayConfig, replay
from rolltree.replay.simulator import Simulator
from rolltree.replay.stores import Stores
from rolltree.replay.tally import Tally
from rolltree.replay.verdict import verify
from rolltree.types import DraftBatch
from tests.replay_tools import UNIT, Scripted, random_rollouts, rollout

DRAFTERS = ["none", "ngram", "history", "srt", "rolltree", "ceiling"]


def simulate(rollouts, drafter, *, slots=0, max_draft=4, profile=UNIT):
    tally = Tally(len(rollouts), max_draft)
    simulator = Simulator(rollouts, drafter, profile, tally, slots=slots, max_draft=max_draft)
    simulator.run()
    return simulator, tally


def config(*names, **changes):
    settings = {"drafters": parse_drafters(names), "profile": UNIT, "limits": Limits(max_draft=8), "batches": [4]}
    return ReplayConfig(**(settings | changes))


def run(recording, *names, **changes):
    return replay(recording, config(*names, **changes), lambda case, tokens: None)["cases"]


def two_steps(seed=0):
    return Selection().select([], [*random_rollouts(seed, step=1), *random_rollouts(seed + 1, step=2)])


# The schedule


def test_slots_are_refilled_as_they_free():
    rollouts = [rollout(name, range(n)) for name, n in (("a", 3), ("b", 1), ("c", 2), ("d", 1))]
    simulator, tally = simulate(rollouts, Scripted(), slots=2)
    assert tally.start.tolist() == pytest.approx([0, 0, 1, 3])
    assert tally.finish.tolist() == pytest.approx([3, 1, 3, 4])
    assert (tally.engine_steps, simulator.clock) == (4, pytest.approx(4))
    assert tally.row_steps.tolist() == [3, 1, 2, 1]


def test_no_slots_take_everything_at_once():
    _, tally = simulate([rollout("a", range(n)) for n in (5, 2, 7)], Scripted())
    assert (tally.engine_steps, tally.row_steps.tolist()) == (7, [5, 2, 7])


def test_accepted_tokens_and_one_more_each_step():
    text = [7, 7, 7, 9, 7, 7]
    _, tally = simulate([rollout("a", text)], Scripted(lambda so_far, limit: [7] * 2))
    # 7 7 | 7 9: two accepted and one, none; then 7 7 and the end
    assert tally.row_steps.tolist() == [3]
    assert (tally.drafted.tolist(), tally.accepted.tolist()) == ([6], [4])
    assert tally.drafted_at.tolist() == [3, 3, 0, 0]
    assert tally.accepted_at.tolist() == [2, 2, 0, 0]


def test_drafts_past_the_end_are_paid_for_and_not_accepted():
    _, tally = simulate([rollout("a", [5, 5])], Scripted(lambda so_far, limit: [5] * limit))
    assert (tally.engine_steps, tally.drafted.sum(), tally.accepted.sum()) == (1, 4, 2)


def test_a_drafter_hears_everything_in_order():
    drafter = Scripted()
    simulate([rollout("a", [1, 2]), rollout("a", [3], sample=1), rollout("b", [4])], drafter, slots=2)
    assert drafter.log == [
        ("open", 0, "a"), ("open", 1, "a"), ("draft", 0, 1), ("advance", 0, 1), ("close", 1),
        ("open", 2, "b"), ("draft", 0, 2), ("advance", 0, 2), ("close", 0), ("close", 2),
    ]  # fmt: skip
    assert drafter.texts == {0: [1, 2], 1: [3], 2: [4]}


def test_a_prompt_is_prefilled_once_a_step():
    loads = []

    class Spy(Measured):
        def seconds(self, load: Load) -> float:
            loads.append(load)
            return 1.0

    simulate([rollout("abc", [1, 2]), rollout("abc", [1], sample=1), rollout("d", [1])], Scripted(), slots=2,
             profile=Spy("spy", UNIT.cost))  # fmt: skip
    assert [(load.rows, load.prefill, load.context) for load in loads] == [(2, 2, 6), (2, 0, 3 + 1 + 1)]


def test_the_emitted_text_is_the_recorded_one_whatever_the_drafter():
    rollouts = random_rollouts(3)
    for spec in map(DrafterSpec.parse, DRAFTERS):
        for shape in ("chain", "tree"):
            drafter, seen = spec.make(Limits(max_draft=6, shape=shape)), {}
            plain_advance, plain_open = drafter.advance, drafter.open

            def opened(prompt, *, key, call=plain_open, seen=seen):
                handle = call(prompt, key=key)
                seen[handle] = []
                return handle

            def heard(handles, tokens, offsets, call=plain_advance, seen=seen):
                for row, handle in enumerate(handles.tolist()):
                    seen[handle] += tokens[offsets[row] : offsets[row + 1]].tolist()
                call(handles, tokens, offsets)

            drafter.advance, drafter.open = heard, opened
            simulate(rollouts, drafter, slots=5, max_draft=6)
            assert list(seen.values()) == [r.tokens.tolist() for r in rollouts], (spec.text, shape)


def test_siblings_see_tokens_only_once_they_are_decoded():
    text = list(range(100, 140))  # never repeats itself: all that can be drafted is a sibling's
    twins = Recording([], [TrainingStep(0, [rollout("a", text), rollout("a", text, sample=1)])])
    together, one_by_one = (run(twins, "rolltree:min_survival=0", batches=[slots], budget="off")[0] for slots in (2, 1))
    assert together["drafted"] == 0
    assert one_by_one["files"][0]["rollouts"] == 2
    assert one_by_one["accepted"] >= 30


# Against slow, plain ways of computing the same


def naive_walk(tokens, parents, length, truth):
    at, path = -1, []
    for token in truth:
        children = [j for j in range(length) if parents[j] == at and tokens[j] == token]
        if not children:
            return path
        at = children[0]
        path.append(at)
    return path


@pytest.mark.parametrize("chain", [True, False])
def test_verification_follows_the_record(chain):
    draw = np.random.default_rng(5)
    for _ in range(50):
        rows, width = int(draw.integers(1, 6)), int(draw.integers(1, 9))
        tokens = draw.integers(0, 2 if chain else 40, (rows, width)).astype(np.int32)
        truth = draw.integers(0, 2, (rows, width + 1)).astype(np.int32)
        for b in range(rows):
            truth[b, draw.integers(0, width + 2) :] = -1
        parents = np.tile(np.arange(-1, width - 1, dtype=np.int32), (rows, 1))
        if not chain:  # siblings differ
            parents = np.array(
                [[draw.integers(-1, j) if j else -1 for j in range(width)] for _ in range(rows)], np.int32
            )
            for b in range(rows):
                for parent in range(-1, width):
                    children = np.flatnonzero(parents[b] == parent)
                    tokens[b, children] = np.arange(len(children))
        lengths = draw.integers(0, width + 1, rows).astype(np.int32)
        for b in range(rows):
            parents[b, lengths[b] :] = 12345  # undefined by contract
        if chain:
            parents = np.tile(np.arange(-1, width - 1, dtype=np.int32), (rows, 1))
        batch = DraftBatch(
            tokens=tokens, parents=parents, lengths=lengths, survival=np.ones((rows, width), np.float32), is_chain=chain
        )
        verdict = verify(batch, truth)
        paths = [naive_walk(tokens[b], parents[b], lengths[b], truth[b]) for b in range(rows)]
        assert verdict.accepted.tolist() == [len(path) for path in paths]
        good = [j in paths[b] for b in range(rows) for j in range(lengths[b])]
        assert verdict.good.tolist() == good
        accepted_depths = sorted(verdict.depth[verdict.good].tolist())
        assert accepted_depths == sorted(d for path in paths for d in range(len(path)))


def test_calibration_error_is_that_of_the_claims():
    tally = Tally(1, 1)
    claimed, truth = [0.72] * 100 + [0.21] * 300, [True] * 50 + [False] * 50 + [True] * 60 + [False] * 240
    tally.calibration.add(np.array(claimed), np.array(truth))
    made = results.calibration([StepRun(TrainingStep(0, [rollout("a", [1])]), tally, 0.0)])
    assert made["expected_calibration_error"] == pytest.approx(0.25 * (0.72 - 0.5) + 0.75 * (0.21 - 0.2))
    assert [(b["nodes"], b["accepted"]) for b in made["calibration"]] == [(300, 0.2), (100, 0.5)]


def test_latency_counts_from_the_begin_and_service_from_the_slot():
    rollouts = [rollout("a", range(n)) for n in (2, 3, 4)]
    simulator, tally = simulate(rollouts, Scripted(), slots=1)
    made = results.summary([StepRun(TrainingStep(0, rollouts), tally, simulator.clock)])
    assert made["generation_seconds"] == pytest.approx(9)
    assert [made[f"latency_p{q}_seconds"] for q in (50, 99)] == pytest.approx([5, 8.92])
    assert [made[f"service_p{q}_seconds"] for q in (50, 99)] == pytest.approx([3, 3.98])


# Cost profiles


def test_the_roofline_has_its_knee_at_295_tokens():
    profile = load_profile("h100-7b")
    assert isinstance(profile, Roofline)
    weights = 2 * 7.07e9 / 3.35e12
    assert profile.seconds(Load(1)) == profile.seconds(Load(200, 95)) == pytest.approx(weights)
    assert profile.seconds(Load(200, 96)) > weights
    assert profile.seconds(Load(590)) == pytest.approx(2 * 7.07e9 * 590 / 989e12)
    assert profile.seconds(Load(8, prefill=582)) == profile.seconds(Load(590))
    keys = 2 * 28 * 4 * 128 * 2 * 10_000 / 3.35e12
    assert profile.seconds(Load(8, context=10_000)) == pytest.approx(weights + keys)
    assert load_profile("h100-1.5b").seconds(Load(1)) < weights / 4


def test_the_budgets_model_is_the_roofline():
    profile = load_profile("h100-1.5b")
    for load in (Load(8, context=500), Load(300, context=90_000), Load(64, 512, 8, context=64_000)):
        model = profile.model(load)
        assert model.seconds(load.rows, load.drafted, load.longest) == pytest.approx(profile.seconds(load), rel=1e-12)


def test_the_cpu_profile_fits_what_was_measured():
    profile = load_profile("cpu-2core")
    for rows, tokens, milliseconds in ((1, 1, 22), (4, 16, 63), (8, 8, 65), (16, 16, 158), (16, 1, 56)):
        seconds = profile.seconds(Load(rows, rows * (tokens - 1), tokens - 1))
        assert seconds == pytest.approx(milliseconds * 1e-3, rel=0.25)


def test_a_measured_profile_comes_from_a_file(tmp_path):
    cost = CostModel(base=0.5, token=0.25, row=0.125, cell=0.0, ragged=0.5)
    cost.save(tmp_path / "mine.json")
    profile = load_profile(str(tmp_path / "mine.json"))
    assert profile.seconds(Load(2, 3, 2, prefill=4)) == cost.seconds(2, 3, 2) + 4 * 0.25
    assert profile.model(Load(1)) == cost
    with pytest.raises(InvalidInputError, match="h100-7b"):
        load_profile("a100")


# Cases


def test_steps_are_epochs_and_history_comes_before():
    recording = two_steps()
    cold, warm = (
        run(r, "history", budget="off")[0]
        for r in (recording, Selection().select(random_rollouts(9, step=0), recording.rollouts))
    )
    assert [step["step"] for step in cold["steps"]] == [1, 2]
    assert cold["steps"][0]["drafted"] == 0  # a drafter of history alone knows nothing in the first epoch
    assert cold["steps"][1]["drafted"] > 0
    assert warm["steps"][0]["drafted"] > 0
    assert warm["tokens_per_step"] > cold["tokens_per_step"]


def test_live_text_helps_in_the_first_epoch():
    cases = {case["drafter"]: case for case in run(two_steps(), "history", "rolltree", budget="off")}
    assert cases["rolltree"]["steps"][0]["tokens_per_step"] > cases["history"]["steps"][0]["tokens_per_step"] == 1.0


def test_the_ceiling_is_that_of_equal_drafts():
    names = ["rolltree", "rolltree:max_draft=2", "ngram", "none"]
    wide, narrow, ngram, none = run(two_steps(), *names, budget="off")
    assert wide["ceiling_tokens_per_step"] == ngram["ceiling_tokens_per_step"] > narrow["ceiling_tokens_per_step"]
    assert narrow["max_draft"] == 2
    assert narrow["tokens_per_step"] < 3
    for case in (wide, narrow, ngram, none):
        assert case["ceiling_share"] == pytest.approx(case["tokens_per_step"] / case["ceiling_tokens_per_step"])
        assert case["ceiling_share"] < 1
    oracle = run(two_steps(), "ceiling", budget="off")[0]
    assert oracle["drafted"] == oracle["accepted"] > 0
    assert oracle["ceiling_share"] == 1


def test_a_budget_is_told_the_step_to_come_and_the_step_that_was():
    asked, observed = [], []

    class Ear:
        def model(self, load):
            asked.append(load)
            return CostModel(base=float(len(asked)), token=1.0)

        def observe(self, load, seconds):
            observed.append((load, seconds))

    drafter = Scripted(lambda text, limit: [len(text)] if len(text) < 2 else [])
    drafter.budgeted = True
    rollouts, tally = [rollout("ab", [0, 1, 2]), rollout("ab", [0], sample=1)], Tally(2, 4)
    Simulator(rollouts, drafter, UNIT, tally, slots=2, max_draft=4, budget=Ear()).run()
    assert [(load.rows, load.context) for load in asked] == [(2, 4), (1, 4)]
    assert [(load.rows, load.drafted, load.longest, seconds) for load, seconds in observed] == [
        (2, 2, 1, pytest.approx(1)), (1, 0, 0, pytest.approx(1)),
    ]  # fmt: skip
    assert drafter.cost == CostModel(base=2.0, token=1.0)
    profile = load_profile("h100-7b")
    assert GivenCost(profile).model(Load(3, context=50)) == profile.model(Load(3, context=50)) != profile.model(Load(3))


def test_a_budget_never_loses_where_every_token_costs():
    dear = Measured("dear", CostModel(base=1e-6, token=1.0))
    case, blind = (run(two_steps(), "rolltree", profile=dear, budget=budget)[0] for budget in ("told", "off"))
    assert case["speedup"] >= 0.99
    assert blind["speedup"] < 0.9


def test_a_learned_cost_comes_close_to_the_told_one():
    slow = Measured("slow", CostModel(base=1.0, token=0.05))
    recording = Selection().select(
        random_rollouts(1, step=0), [r for seed in range(6) for r in random_rollouts(seed, step=1 + seed)]
    )
    told, learned = (run(recording, "rolltree", profile=slow, budget=kind)[0] for kind in ("told", "learned"))
    assert learned["speedup"] >= 0.95 * told["speedup"] > 1.0


def test_the_parts_add_up():
    for case in run(two_steps(), "rolltree", "ngram", budget="off"):
        assert case["tokens"] == sum(step["tokens"] for step in case["steps"])
        assert case["tokens"] == sum(file["tokens"] for file in case["files"])
        assert case["row_steps"] == sum(step["row_steps"] for step in case["steps"])
        assert case["drafted"] == sum(place["drafted"] for place in case["by_position"])
        assert case["accepted"] == sum(place["accepted"] for place in case["by_position"])
        assert case["generation_seconds"] == pytest.approx(sum(step["generation_seconds"] for step in case["steps"]))
        if case["by_source"]:
            assert case["drafted"] == sum(source["drafted"] for source in case["by_source"])
            assert case["accepted"] == sum(source["accepted"] for source in case["by_source"])


def test_the_same_input_gives_the_same_document():
    measured = ("draft_microseconds", "update_microseconds", "open_seconds", "with_drafting")

    def made():
        names = ["rolltree", "rolltree:capacity_bytes=60000", "srt", "ngram"]
        cases = run(two_steps(), *names, batches=[3, 0], profile=load_profile("h100-7b"), stores=Stores(None))
        text = json.dumps(cases, sort_keys=True)
        return json.loads(text, object_hook=lambda d: {k: v for k, v in d.items() if not any(m in k for m in measured)})

    assert made() == made()


def test_prompts_are_chosen_by_half_sample_and_seed():
    rollouts = random_rollouts(2, prompts=5, samples=3)
    random.Random(1).shuffle(rollouts)
    first_seen = list(dict.fromkeys(r.prompt_id for r in rollouts))
    chosen = [Selection(split=half, samples=2).select([], rollouts).rollouts for half in ("even", "odd")]
    assert list(dict.fromkeys(r.prompt_id for r in chosen[0])) == first_seen[::2]
    assert list(dict.fromkeys(r.prompt_id for r in chosen[1])) == first_seen[1::2]
    assert {r.sample for half in chosen for r in half} == {0, 1}
    orders = [[r.prompt_id for r in Selection(seed=seed).select([], rollouts).rollouts] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    cut = Selection(max_tokens=5).select(rollouts, rollouts)
    assert max(len(r.tokens) for r in cut.rollouts) == 5
    assert max(len(r.tokens) for r in cut.history[0].rollouts) > 5
    with pytest.raises(InvalidInputError, match="--split"):
        Selection(split="odd").select([], random_rollouts(0, prompts=1))


# Memory


def test_prompts_that_left_come_back_from_a_store_as_they_were():
    steps = [r for step in range(4) for r in random_rollouts(step, step=step, prompts=8, length=150)]
    recording = Selection().select([], steps)

    def one(capacity, stores):
        name = f"rolltree:shared_window=0:capacity_bytes={capacity}"
        [case] = run(recording, name, batches=[3], ceiling=False, stores=stores)
        return case

    whole, kept, lost = one(2**30, None), one(90_000, Stores(None)), one(90_000, None)
    assert (kept["row_steps"], kept["accepted"]) == (whole["row_steps"], whole["accepted"])
    assert lost["row_steps"] > 1.1 * whole["row_steps"]
    assert whole["evicted_prompts"] == lost["rebuilt_prompts"] == 0
    assert min(kept["evicted_prompts"], kept["rebuilt_prompts"], lost["evicted_prompts"]) > 5
    assert max(kept["peak_tree_bytes"], lost["peak_tree_bytes"]) <= 90_000 < whole["peak_tree_bytes"]
    rebuilt = [step["rebuilt_prompts"] for step in kept["steps"]]
    assert rebuilt[0] == 0
    assert 0 < max(rebuilt) <= 8  # a step's own, once for each prompt


def test_temporary_stores_go_away_with_their_case(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Stores.at("temporary").of("rolltree, 3 slots") as kept:
        assert kept.store is not None
        assert tmp_path in kept.store.path.parents
        kept.store.add([1], [2, 3])
    assert kept.info is not None
    assert kept.info.tokens == 2
    assert not list(tmp_path.iterdir())
