"""All cases of a replay: every drafter at every batch size, against plain decoding and the oracle ceiling.

Each case starts from nothing and is told the history first. Returns the JSON document of `rolltree replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from rolltree.metrics import ratio
from rolltree.replay import results
from rolltree.replay.budgets import Budget, GivenCost, LearnedCost
from rolltree.replay.drafters import DrafterSpec, Limits, ReplayDrafter
from rolltree.replay.profiles import Profile
from rolltree.replay.records import Recording
from rolltree.replay.results import Numbers, StepRun
from rolltree.replay.simulator import Simulator
from rolltree.replay.stores import CaseStore, Stores
from rolltree.replay.tally import Tally
from rolltree.store import StoreInfo

Progress = Callable[[str, int], None]
"""Is told the name of the case and how many more tokens it decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """How the recording is replayed."""

    drafters: Sequence[DrafterSpec]
    batches: Sequence[int] = (32,)
    """Slots of the engine; 0 takes all rollouts of a step at once."""
    profile: Profile
    limits: Limits
    budget: Literal["told", "learned", "off"] = "told"
    """Drafters that can do so weigh the cost of a step, told exactly or learned step by step; off: all that is drafted
    is verified."""
    ceiling: bool = True
    """Replay the oracle, too."""
    stores: Stores | None = None
    """Where the rollouts of drafters over our cache are kept, too, so that evicted prompts come back; None: nowhere."""

    @property
    def passes(self) -> int:
        """How often the recording is decoded."""
        names = {spec.text for spec in self.drafters} | {"none"}
        names |= {self.ceiling_of(spec) for spec in self.drafters if self.ceiling}
        return len(names) * len(self.batches)

    def ceiling_of(self, spec: DrafterSpec) -> str:
        """Return the oracle with as many draft tokens as a drafter has."""
        own = spec.limits(self.limits).max_draft
        return "ceiling" if own == self.limits.max_draft else f"ceiling:max_draft={own}"


@dataclass(frozen=True, slots=True)
class CaseRun:
    """One drafter at one batch size, over all steps."""

    steps: list[StepRun]
    store: StoreInfo | None
    """What the store holds in the end; None without one."""


def replay(recording: Recording, config: ReplayConfig, progress: Progress) -> dict[str, object]:
    """Run all cases."""
    cases = [case for slots in config.batches for case in _cases_of_batch(recording, config, slots, progress)]
    return {**_headline(cases[0]), "cases": cases}


def _headline(case: Numbers) -> dict[str, Any]:
    """The first case without its tables: what a script looks for at the top."""
    return {name: value for name, value in case.items() if not isinstance(value, list)}


def _cases_of_batch(recording: Recording, config: ReplayConfig, slots: int, progress: Progress) -> list[Numbers]:
    def run_of(text: str) -> CaseRun:
        if text not in known:
            known[text] = run_case(recording, config, DrafterSpec.parse(text), slots, progress)
        return known[text]

    known: dict[str, CaseRun] = {}

    def ceiling_of(spec: DrafterSpec) -> Numbers | None:
        return results.summary(run_of(config.ceiling_of(spec)).steps) if config.ceiling else None

    baseline = run_of("none").steps
    return [_case(run_of(spec.text), baseline, ceiling_of(spec), spec, config, slots) for spec in config.drafters]


def run_case(recording: Recording, config: ReplayConfig, spec: DrafterSpec, slots: int, progress: Progress) -> CaseRun:
    """Replay every step with one new drafter at one batch size."""
    name = f"{spec.text}, {slots or 'all'} slots"
    with _store(config, spec, name) as kept:
        drafter = spec.make(config.limits, kept.store)
        steps = _run_steps(recording, config, spec, slots, drafter, lambda tokens: progress(name, tokens))
    return CaseRun(steps, kept.info)


@contextmanager
def _store(config: ReplayConfig, spec: DrafterSpec, name: str) -> Iterator[CaseStore]:
    if config.stores is None or not spec.has_cache:
        yield CaseStore()
        return
    with config.stores.of(name) as kept:
        yield kept


def _run_steps(
    recording: Recording, config: ReplayConfig, spec: DrafterSpec, slots: int, drafter: ReplayDrafter,
    progress: Callable[[int], None],
) -> list[StepRun]:  # fmt: skip
    for version, step in enumerate(recording.history):
        drafter.begin(version)
        drafter.remember(step.rollouts)
    max_draft = spec.limits(config.limits).max_draft
    simulate = partial(
        Simulator, drafter=drafter, profile=config.profile, slots=slots, max_draft=max_draft,
        budget=_budget(config), progress=progress,
    )  # fmt: skip
    runs = []
    for version, step in enumerate(recording.steps, len(recording.history)):
        drafter.begin(version)
        tally, before = Tally(len(step.rollouts), max_draft), (drafter.sources(), drafter.moved())
        simulator = simulate(step.rollouts, tally=tally)
        simulator.run()
        drafter.end(step.rollouts)
        _look_back(tally, drafter, *before)
        runs.append(StepRun(step, tally, simulator.clock))
    return runs


def _budget(config: ReplayConfig) -> Budget | None:
    if config.budget == "off":
        return None
    return GivenCost(config.profile) if config.budget == "told" else LearnedCost()


def _look_back(
    tally: Tally, drafter: ReplayDrafter, before: dict[str, tuple[int, int]], moved: tuple[int, int]
) -> None:
    tally.memory(*drafter.memory())
    evicted, rebuilt = drafter.moved()
    tally.evicted, tally.rebuilt = evicted - moved[0], rebuilt - moved[1]
    for name, (drafted, accepted) in drafter.sources().items():
        drafted0, accepted0 = before[name]
        tally.sources[name] = (drafted - drafted0, accepted - accepted0)


def _case(
    run: CaseRun, baseline: list[StepRun], ceiling: Numbers | None, spec: DrafterSpec, config: ReplayConfig,
    slots: int,
) -> Numbers:  # fmt: skip
    runs = run.steps
    case: Numbers = {
        "drafter": spec.text,
        "batch": slots,
        "cost_profile": config.profile.name,
        **asdict(spec.limits(config.limits)),
        "budget": config.budget,
        **results.summary(runs),
    }
    plain = results.generation_seconds(baseline)
    case["baseline_seconds"] = plain
    case["speedup"] = ratio(plain, case["generation_seconds"])
    case["speedup_with_drafting"] = ratio(plain, case["generation_seconds_with_drafting"])
    case["makespan_seconds"] = max(run.seconds for run in runs)
    case["baseline_makespan_seconds"] = max(run.seconds for run in baseline)
    case["ceiling_tokens_per_step"] = ceiling and ceiling["tokens_per_step"]
    case["ceiling_share"] = ratio(case["tokens_per_step"], ceiling["tokens_per_step"]) if ceiling else None
    if run.store:
        case |= {"store_bytes": run.store.bytes, "store_bytes_per_token": ratio(run.store.bytes, run.store.tokens)}
    if spec.claims:
        case |= results.calibration(runs)
    case["by_position"], case["by_source"] = results.by_position(runs), results.by_source(runs)
    case["files"] = results.by_file(runs)
    case["steps"] = [_step(each, plain_run) for each, plain_run in zip(runs, baseline, strict=True)]
    return case


def _step(run: StepRun, plain: StepRun) -> Numbers:
    numbers = results.summary([run])
    numbers |= {
        "step": run.step.number,
        "baseline_seconds": plain.seconds,
        "speedup": ratio(plain.seconds, run.seconds),
    }
    return numbers
