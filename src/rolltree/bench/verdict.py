"""One sentence about measured rollouts: worth it or not, and with which setting. Pure functions of the cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

BASELINE, OURS = "none", "rolltree"
WORTH = 1.05
"""Times as fast from which on it is worth a setting; below its inverse it costs time."""
CLEARLY = 1.03
"""How much faster another way must be to be named."""
LITTLE = 1.15
"""Tokens a step below which texts hardly repeat."""
RARE = 0.1
"""Draft tokens a step below which the budget, or the lack of a match, has turned drafting off."""

Case = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a bench says at its end."""

    worth_it: bool | None
    """None: not known."""
    verdict: str
    best: dict[str, Any] | None
    """Setting of the fastest way to draft with rolltree: `drafter`, `runner`, `max_draft`, `batch`, `speedup`."""

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def judge(cases: Sequence[Case]) -> Verdict:
    """Judge the cases of `bench engine`.

    Each has `batch`, `drafter`, `epoch`, `seconds`, `tokens`, `tokens_per_step`; optional `runner`, `max_draft`, and
    `error`, the reason why there are no numbers.
    """
    ran = [case for case in cases if not case.get("error")]
    speeds = {name: speed for name in dict.fromkeys(map(_name, ran)) if (speed := _late(ran, name)) is not None}
    ours = {name: speed for name, speed in speeds.items() if name[1].startswith(OURS)}
    if not ours:
        why = next((f": {case['error']}" for case in cases if case.get("error")), "")
        return Verdict(None, f"Not known: there are no numbers of both the plain engine and rolltree{why}.", None)
    name = max(ours, key=lambda each: ours[each])
    rivals = {
        each: speed for each, speed in speeds.items() if each[0] == name[0] and each[1] not in (BASELINE, name[1])
    }
    rows = [case for case in ran if _name(case) == name]
    text = _sentence(rows, ours[name]) + _rival(rivals, ours[name])
    best = {key: rows[0].get(key) for key in ("drafter", "runner", "max_draft", "batch")} | {"speedup": ours[name]}
    return Verdict(ours[name] >= WORTH, text, best)


def _name(case: Case) -> tuple[Any, str, Any]:
    return case["batch"], case["drafter"], case.get("runner")


def _late(cases: Sequence[Case], name: tuple[Any, str, Any]) -> float | None:
    """Times as fast as the plain engine after the first epoch, which finds nothing to repeat; in it, if it is all."""
    rows = [case for case in cases if _name(case) == name]
    rows = [case for case in rows if case["epoch"] > 1] or rows
    epochs = {case["epoch"] for case in rows}
    plain = [c for c in cases if c["batch"] == name[0] and c["drafter"] == BASELINE and c["epoch"] in epochs]
    return _pace(plain) / _pace(rows) if len(plain) >= len(rows) > 0 else None


def _pace(cases: Sequence[Case]) -> float:
    """Seconds per token."""
    seconds, tokens = (sum(float(case[key]) for case in cases) for key in ("seconds", "tokens"))
    return seconds / max(tokens, 1)


def _sentence(rows: Sequence[Case], speed: float) -> str:
    head = "Worth it" if speed >= WORTH else "It makes no difference" if speed > 1 / WORTH else "Not worth it"
    first, last = rows[0], rows[-1]
    only = last["epoch"] == 1
    when = "in one epoch, where only siblings repeat (more --epochs show more)" if only else "from epoch 2 on"
    before = "" if only or not first.get("speedup") else f" ({first['speedup']:.2f} in epoch 1)"
    text = f"{head}: with {_setting(first)} rolltree generates these rollouts {speed:.2f} times as fast as the engine"
    why = "" if speed >= WORTH else f"; {_why(last['tokens_per_step'], last.get('drafted_per_step', 1.0))}"
    return f"{text} alone {when}{before}{why}."


def _setting(case: Case) -> str:
    parts = [f"{case['max_draft']} draft tokens" if case.get("max_draft") else "", _batch(case.get("batch"))]
    parts.append(f"the {case['runner']} model runner" if case.get("runner") else "")
    shape = " as trees" if case["drafter"] == f"{OURS}-tree" else ""
    return ", ".join(part for part in (parts[0] + shape, *parts[1:]) if part)


def _batch(batch: int | None) -> str:
    return f"{batch} requests at once" if batch else ""


def _why(tokens_per_step: float, drafted_per_step: float) -> str:
    if tokens_per_step < LITTLE and drafted_per_step < RARE:
        return "hardly anything was drafted: nothing repeats, or steps are bound by compute; try fewer requests at once"
    if tokens_per_step < LITTLE:
        return f"little was accepted, {tokens_per_step:.2f} tokens a step"
    return f"{tokens_per_step:.2f} tokens come in a step, but such steps take longer: try fewer requests at once"


def _rival(rivals: Mapping[tuple[Any, str, Any], float], speed: float) -> str:
    if not rivals:
        return ""
    name = max(rivals, key=lambda each: rivals[each])
    if rivals[name] < CLEARLY * speed or rivals[name] < WORTH:
        return ""
    return f" {name[1]} is faster here: {rivals[name]:.2f} times."
