"""All cases of a replay: every drafter at every batch size, against plain decoding and the clairvoyant ceiling.

Each case starts from nothing and is told the history first. Returns the JSON document of `rolltree replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from rolltree.metrics import ratio
from rolltree.replay import results
from rolltree.replay.budgets import Budget, Learned, Told
from rolltree.replay.drafters import DrafterSpec, Limits, ReplayDrafter
from rolltree.replay.profiles import Profile
from rolltree.replay.records import Recording
from rolltree.replay.results import Numbers, StepRun
from rolltree.replay.simulator import Simulator
from rolltree.replay.tally import Tally

Progress = Callable[[str, int], None]
"""Hears the name of the case and how many more tokens it decoded."""


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
    """Replay the clairvoyant, too."""

    @property
    def passes(self) -> int:
        """How often the recording is decoded."""
        names = {spec.text for spec in self.drafters} | {"none"}
        names |= {self.ceiling_of(spec) for spec in self.drafters if self.ceiling}
        return len(names) * len(self.batches)

    def ceiling_of(self, spec: DrafterSpec) -> str:
        """Return the clairvoyant with as many draft tokens as a drafter has."""
        own = spec.limits(self.limits).max_draft
        return "ceiling" if own == self.limits.max_draft else f"ceiling:max_draft={own}"


def replay(recording: Recording, config: ReplayConfig, progress: Progress) -> dict[str, object]:
    """Run all cases."""
    cases = [case for slots in config.batches for case in _cases_of_batch(recording, config, slots, progress)]
    return {**_headline(cases[0]), "cases": cases}


def _headline(case: Numbers) -> dict[str, Any]:
    """The first case without its tables: what a script looks for at the top."""
    return {name: value for name, value in case.items() if not isinstance(value, list)}


def _cases_of_batch(recording: Recording, config: ReplayConfig, slots: int, progress: Progress) -> list[Numbers]:
    def runs_of(text: str) -> list[StepRun]:
        if text not in known:
            known[text] = run_case(recording, config, DrafterSpec.parse(text), slots, progress)
        return known[text]

    known: dict[str, list[StepRun]] = {}

    def ceiling_of(spec: DrafterSpec) -> Numbers | None:
        return results.summary(runs_of(config.ceiling_of(spec))) if config.ceiling else None

    baseline = runs_of("none")
    return [_case(runs_of(spec.text), baseline, ceiling_of(spec), spec, config, slots) for spec in config.drafters]


def run_case(
    recording: Recording, config: ReplayConfig, spec: DrafterSpec, slots: int, progress: Progress
) -> list[StepRun]:
    """Replay every step with one new drafter at one batch size."""
    drafter = spec.make(config.limits)
    for version, step in enumerate(recording.history):
        drafter.begin(version)
        drafter.remember(step.rollouts)
    max_draft = spec.limits(config.limits).max_draft
    simulate = partial(
        Simulator, drafter=drafter, profile=config.profile, slots=slots, max_draft=max_draft,
        budget=_budget(config),
        progress=lambda tokens: progress(f"{spec.text}, {slots or 'all'} slots", tokens),
    )  # fmt: skip
    runs = []
    for version, step in enumerate(recording.steps, len(recording.history)):
        drafter.begin(version)
        tally, before = Tally(len(step.rollouts), max_draft), drafter.sources()
        simulator = simulate(step.rollouts, tally=tally)
        simulator.run()
        drafter.end(step.rollouts)
        _look_back(tally, drafter, before)
        runs.append(StepRun(step, tally, simulator.clock))
    return runs


def _budget(config: ReplayConfig) -> Budget | None:
    if config.budget == "off":
        return None
    return Told(config.profile) if config.budget == "told" else Learned()


def _look_back(tally: Tally, drafter: ReplayDrafter, before: dict[str, tuple[int, int]]) -> None:
    tally.memory(*drafter.memory())
    for name, (drafted, accepted) in drafter.sources().items():
        drafted0, accepted0 = before[name]
        tally.sources[name] = (drafted - drafted0, accepted - accepted0)


def _case(
    runs: list[StepRun], baseline: list[StepRun], ceiling: Numbers | None, spec: DrafterSpec, config: ReplayConfig,
    slots: int,
) -> Numbers:  # fmt: skip
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
    if spec.claims:
        case |= results.calibration(runs)
    case["by_position"], case["by_source"] = results.by_position(runs), results.by_source(runs)
    case["files"] = results.by_file(runs)
    case["steps"] = [_step(run, plain_run) for run, plain_run in zip(runs, baseline, strict=True)]
    return case


def _step(run: StepRun, plain: StepRun) -> Numbers:
    numbers = results.summary([run])
    numbers |= {
        "step": run.step.number,
        "baseline_seconds": plain.seconds,
        "speedup": ratio(plain.seconds, run.seconds),
    }
    return numbers
