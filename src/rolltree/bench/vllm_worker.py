"""One vLLM engine in a process of its own: starts as it is told, generates epochs, reports through a pipe.

The process is there so that a GPU's memory is free for the next engine, and so that a crash is a result. What vLLM
prints goes to a file, from whose end the reason of a failure is read. Loads vLLM only inside the process.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from rolltree.bench.vllm_steps import StepClock, decode_seconds
from rolltree.errors import InvalidInputError

NGRAM = {"num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
DRAFTERS = ("none", "ngram", "suffix", "rolltree")
WARM_TOKENS, WARM_REQUESTS = 8, 4
SHOWN = 400
"""Characters of a reason."""
_ERROR = re.compile(r"(?:\(\w+ pid=\d+\) )?(?:(?:ERROR|CRITICAL) .*?\] )?([\w.]*(?:Error|Exception)\b: .+)")
_PYDANTIC = re.compile(r" \[type=\w+, input_value=.*")
_NO_REASON = ("Engine core initialization failed", "WorkerProc initialization failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What a worker builds."""

    drafter: str
    """One of `DRAFTERS`."""
    model: str
    """Folder or name of the model."""
    slots: int | None = None
    """Requests in the batch at most; None: vLLM's own choice."""
    max_draft: int = 16
    """Draft tokens of a request and step at most; n-gram has its own number."""
    speculative: Mapping[str, object] = field(default_factory=dict)
    """More of vLLM's speculative_config."""
    arguments: tuple[str, ...] = ()
    """As for `vllm serve`."""
    threads: int | None = None
    """Threads of torch, set once the engine is there; None: as they are."""
    log: str = os.devnull
    """File that gets what vLLM prints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What an engine turned out to be."""

    runner: str
    """Model runner, V1 or V2."""
    max_length: int
    vocab: int
    device: str
    dtype: str
    coupled: bool
    """The same seed gives the same rollout with drafts and without."""
    is_async: bool = False
    """The next step is scheduled while this one runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An epoch to generate."""

    prompts: list[list[int]]
    sampling: dict[str, Any]
    version: int
    seeded: bool = False
    """Give each request its place as seed, counted from `first_seed`."""
    first_seed: int = 0
    with_texts: bool = False
    warm_up: int = WARM_REQUESTS
    """Requests of the warm-up before it; there is none where one of so many came before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What a worker generated."""

    seconds: float
    tokens: int
    drafted: int
    accepted: int
    draft_seconds: float
    """Seconds in rolltree's proposer; 0 for the others."""
    step_seconds: list[float] = field(default_factory=list)
    """Of each decode step of a batch that had not thinned to less than half."""
    texts: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Failed:
    """Why an engine did not start, or ended."""

    why: str


def work(pipe: Connection, spec: EngineSpec, prepare: Callable[[Any, str], None] | None = None) -> None:
    """Build the engine, answer `About`, then each `Order` with its `Epoch` until None comes, or the other end goes.

    Meanwhile the number of rollouts that have ended travels as an int. `prepare` is called with engine and drafter
    before the answer. A mistake in the arguments is answered with its InvalidInputError, anything else with `Failed`.
    """
    os.setsid()  # a Ctrl-C is for the parent, which ends this process and all that vLLM starts below it
    with open(spec.log, "ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        _serve(pipe, spec, prepare)
    except (EOFError, BrokenPipeError):
        return
    except InvalidInputError as error:
        pipe.send(error)
    except Exception as error:
        sys.stderr.flush()
        pipe.send(Failed(reason(Path(spec.log), f"{type(error).__name__}: {error}")))


def reason(log: Path, said: str) -> str:
    """Return why an engine failed: what its processes printed last, where its own message does not know."""
    if said and not any(text in said for text in _NO_REASON):
        return _PYDANTIC.sub("", " ".join(said.split()))[:SHOWN]
    printed = log.read_text(errors="replace").splitlines() if log.is_file() else []
    found = [match[1] for line in printed if (match := _ERROR.match(line.strip()))]
    found = [line for line in found if not any(text in line for text in _NO_REASON)]
    return (found or [" ".join(said.split()) or "no message"])[-1][:SHOWN]


def engine_arguments(spec: EngineSpec) -> Any:
    """Return vLLM's EngineArgs.

    Raises:
        InvalidInputError: an argument that vLLM does not take, or that is set here.

    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="vllm", add_help=False))
    parser.error = _refuse
    given = parser.parse_args(["--model", spec.model, *spec.arguments])
    if given.speculative_config is not None:
        raise InvalidInputError("-- --speculative-config", given.speculative_config, "left out: each way gets its own")
    given.speculative_config = speculation(spec)
    given.disable_log_stats = False  # vLLM's own counters
    if spec.slots is not None:
        given.max_num_seqs = spec.slots
    return EngineArgs.from_cli_args(given)


def _refuse(message: str) -> None:
    raise InvalidInputError("-- ENGINE ARGUMENTS", message, "arguments as of `vllm serve`")


def speculation(spec: EngineSpec) -> dict[str, object] | None:
    """Return vLLM's speculative_config."""
    width = {"num_speculative_tokens": spec.max_draft}
    match spec.drafter:
        case "ngram":
            return {"method": "ngram", **NGRAM, **spec.speculative}
        case "suffix":
            return {"method": "suffix", **width, **spec.speculative}
        case "rolltree":
            return {"method": "custom_class", "model": "rolltree.vllm.Proposer", **width, **spec.speculative}
    return None


def _serve(pipe: Connection, spec: EngineSpec, prepare: Callable[[Any, str], None] | None) -> None:
    import torch

    from vllm import LLM

    llm = LLM.from_engine_args(engine_arguments(spec))
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    if prepare is not None:
        prepare(llm, spec.drafter)
    clock = StepClock(llm)
    pipe.send(_about(llm))
    warm = 0
    while (order := pipe.recv()) is not None:
        if order.warm_up > warm:
            _warm_up(llm, order)
            warm = order.warm_up
        pipe.send(_generate(llm, spec, order, clock, pipe.send))
    llm.llm_engine.engine_core.shutdown()


def _about(llm: Any) -> About:
    from vllm.platforms import current_platform

    config = llm.llm_engine.vllm_config
    own = (config.additional_config or {}).get("rolltree") or {}
    is_v2 = bool(getattr(config, "use_v2_model_runner", False))
    return About(
        runner="V2" if is_v2 else "V1",
        max_length=int(config.model_config.max_model_len),
        vocab=int(config.model_config.get_vocab_size()),
        device="cpu" if current_platform.is_cpu() else str(current_platform.get_device_name()),
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        is_async=bool(config.scheduler_config.async_scheduling),
        coupled=is_v2 and bool(own.get("coupled") or os.environ.get("ROLLTREE_COUPLED", "").lower() in ("1", "true")),
    )


def _warm_up(llm: Any, order: Order) -> None:
    """Compile and cache what the first request would, by a few tokens that nobody remembers."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=WARM_TOKENS, detokenize=False, extra_args={"rolltree": {"remember": False}})
    llm.generate([{"prompt_token_ids": ids} for ids in order.prompts[: order.warm_up]], sampling, use_tqdm=False)


def _generate(llm: Any, spec: EngineSpec, order: Order, clock: StepClock, report: Callable[[int], None]) -> Epoch:
    from vllm import SamplingParams

    llm.reset_prefix_cache()  # as trainers do after an update
    if spec.drafter == "rolltree":
        from rolltree.vllm import Control

        Control(llm).commit()
        Control(llm).set_version(order.version)
    before = _sums(llm, spec)
    inputs = [{"prompt_token_ids": prompt} for prompt in order.prompts]
    seeds = range(order.first_seed, order.first_seed + len(inputs)) if order.seeded else [None] * len(inputs)
    sampling = [SamplingParams(**order.sampling, seed=seed, detokenize=False) for seed in seeds]
    clock.take()
    begin = time.perf_counter()
    outputs = llm.generate(inputs, sampling, use_tqdm=_bar(report))
    seconds = time.perf_counter() - begin
    drafted, accepted, draft_seconds = (_sums(llm, spec) - before).tolist()
    texts = [list(output.outputs[0].token_ids) for output in outputs]
    return Epoch(
        seconds=seconds, tokens=sum(map(len, texts)), drafted=int(drafted), accepted=int(accepted),
        draft_seconds=draft_seconds, step_seconds=decode_seconds(clock.take()),
        texts=texts if order.with_texts else [],
    )  # fmt: skip


def _bar(report: Callable[[int], None]) -> Callable[..., Any]:
    """What vLLM takes for a progress bar: counts the rollouts that have ended, and draws nothing."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, desc: str = "", **settings: Any) -> None:
            self._counts = desc.startswith("Processed")  # another one counts prompts that go in
            super().__init__(*arguments, **settings | {"file": open(os.devnull, "w")})  # noqa: SIM115

        def update(self, n: float = 1) -> None:
            if self._counts:
                report(int(n))
            super().update(n)

    return Bar


def _sums(llm: Any, spec: EngineSpec) -> Any:
    """Draft tokens that were verified and accepted, and seconds; rolltree's own counts know what was verified."""
    if spec.drafter == "rolltree":
        from rolltree.vllm import Control

        stats = Control(llm).stats()
        return np.array([stats[name] for name in ("drafted", "accepted", "draft_seconds")])
    values = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    counted = [values.get(f"vllm:spec_decode_num_{name}_tokens", 0.0) for name in ("draft", "accepted")]
    return np.array([*counted, 0.0])
