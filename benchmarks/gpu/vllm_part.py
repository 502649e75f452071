"""The vLLM part of the GPU benchmark: step times, speed and exactness of real engines, by the ways of drafting.

One engine after the other, each in a process of its own (`rolltree.bench.vllm_process`), each once for all batches and
temperatures, since its start takes longest. Where minutes count all of them start at once, and those that are not
measured wait. The plain engine comes first. An engine that fails, or is not done in time, is a row that says why, and
the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.gpu.vllm_cases import CASES
from benchmarks.gpu.vllm_models import Subject
from benchmarks.vllm.run import environment
from rolltree.bench.device import DTYPES
from rolltree.bench.verdict import BASELINE
from rolltree.bench.vllm_figures import figures, same_texts
from rolltree.bench.vllm_process import EngineError, Worker, starting
from rolltree.bench.vllm_worker import About, Epoch, Order
from rolltree.errors import InvalidInputError

TEMPERATURES = (0.0, 1.0)
GPU_MEMORY = 0.85
"""Share of it that vLLM may take: this process has a context there, too."""
ROOM = 1.25
"""Of engines that start together each gets the cache that the largest batch needs, times this."""
Row = dict[str, Any]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured of each model."""

    out: Path
    """Folder for what the engines print."""
    device: str
    dtype: str
    cases: Sequence[str] = tuple(CASES)
    batches: Sequence[int] = (1, 8, 64, 256)
    drafts: Sequence[int] = (8,)
    """Draft lengths K."""
    samples: int = 8
    """Rollouts of a prompt in a batch."""
    epochs: int = 2
    """Of each batch: the first finds nothing that it has seen."""
    seconds: float = 240.0
    """An engine that is not done by then is ended; of engines that start together, times their number."""
    together: bool = False
    """Start all engines at once: some minutes in place of one for each."""

    def prompts(self) -> int:
        """How many different prompts a model is asked."""
        return len(TEMPERATURES) * sum(self._groups(batch) for batch in self.batches)

    def contenders(self) -> list[tuple[str, int]]:
        """(case, K), the plain engine first; those without lengths once."""
        names = dict.fromkeys((BASELINE, *self.cases))
        return [(name, k) for name in names for k in (self.drafts if CASES[name].lengths else self.drafts[:1])]

    def cells(self, prompts: Sequence[list[int]]) -> Iterator[Cell]:
        """Every temperature and batch, with prompts of its own, so that its first epoch is cold."""
        given = iter(prompts)
        for number, (temperature, batch) in enumerate(product(TEMPERATURES, self.batches)):
            mine = [next(given) for _ in range(self._groups(batch))]
            rows = [prompt for prompt in mine for _ in range(self.samples)][:batch]
            yield Cell(temperature=temperature, batch=batch, prompts=rows, first_version=number * self.epochs)

    def _groups(self, batch: int) -> int:
        return -(-batch // self.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Requests that run at once."""

    temperature: float
    batch: int
    prompts: list[list[int]]
    first_version: int
    """Of the policy, which only grows in an engine."""

    def order(self, sampling: dict[str, Any], epoch: int) -> Order:
        """Generate it for the `epoch`th time, from 0: with other seeds, so that sampled text is not the same again."""
        return Order(
            prompts=self.prompts, sampling={**sampling, "temperature": self.temperature},
            version=self.first_version + epoch, seeded=self.temperature > 0, first_seed=epoch * self.batch,
            with_texts=True, warm_up=self.batch,
        )  # fmt: skip


@dataclass(slots=True)
class _Plain:
    """What the plain engine generated, by cell and epoch."""

    runner: str = ""
    epochs: dict[tuple[float, int, int], Epoch] = field(default_factory=dict)


def measure(
    subject: Subject, setting: Setting, add: Callable[[Row], None], progress: Progress = lambda what: None
) -> None:
    """Measure every case; `add` gets each row when it is there: see docs/gpu.md."""
    plain, contenders = _Plain(), setting.contenders()
    with ExitStack() as all_engines:
        if setting.together:
            progress(f"{len(contenders)} engines: starting")
        begun = [
            all_engines.enter_context(_begin(subject, setting, *who, limit=setting.seconds * len(contenders)))
            for who in contenders if setting.together
        ]  # fmt: skip
        for place, (name, k) in enumerate(contenders):
            label = f"{name}, K = {k}" if CASES[name].lengths else name
            with ExitStack() as alone:
                engine = begun[place] if begun else alone.enter_context(_begin(subject, setting, name, k))
                progress(f"{label}: starting")
                _contend(engine, subject, setting, name, k, plain, add, _prefixed(progress, label))
        for engine in begun:
            engine.dismiss()


def _prefixed(progress: Progress, label: str) -> Progress:
    return lambda what: progress(f"{label}: {what}")


def _begin(
    subject: Subject, setting: Setting, name: str, k: int, limit: float | None = None
) -> AbstractContextManager[Worker]:
    case = CASES[name]
    log = setting.out / f"vllm-{Path(subject.name).name}-{name}-{k}.log"
    spec = case.spec(
        subject.folder, _arguments(subject, setting), slots=max(setting.batches), max_draft=k, log=str(log)
    )
    return starting(spec, _environment(setting) | case.environment, seconds=limit or setting.seconds)


def _contend(
    engine: Worker, subject: Subject, setting: Setting, name: str, k: int, plain: _Plain, add: Callable[[Row], None],
    progress: Progress,
) -> None:  # fmt: skip
    row: Row = {
        "model": subject.name, "case": name, "max_draft": k if CASES[name].lengths else None, "dtype": setting.dtype,
    }  # fmt: skip
    begin = perf_counter()
    try:
        engine.start()
        row |= _described(engine.about) | {"start_seconds": perf_counter() - begin}
        _run(engine, subject, setting, name, plain, lambda found: add(row | found), progress)
    except (EngineError, InvalidInputError) as error:
        add(row | {"error": str(error)})


def _described(about: About) -> Row:
    return {"runner": about.runner, "async_scheduling": about.is_async, "device": about.device}


def _run(
    engine: Worker, subject: Subject, setting: Setting, name: str, plain: _Plain, add: Callable[[Row], None],
    progress: Progress,
) -> None:  # fmt: skip
    if name == BASELINE:
        plain.runner = engine.about.runner
    for cell in setting.cells(subject.prompts):
        for epoch in range(setting.epochs):
            progress(f"T = {cell.temperature:g}, batch {cell.batch}, epoch {epoch + 1}")
            done = engine.generate(cell.order(subject.sampling, epoch))
            if name == BASELINE:
                plain.epochs[cell.temperature, cell.batch, epoch] = done
            add(_row(cell, epoch, name, done, plain))


def _row(cell: Cell, epoch: int, name: str, done: Epoch, plain: _Plain) -> Row:
    base = plain.epochs.get((cell.temperature, cell.batch, epoch))
    return {
        "temperature": cell.temperature, "batch": cell.batch, "epoch": epoch + 1, **figures(done, base),
        "identical_rollouts": _identical(cell, epoch, name, done, plain), "rollouts": cell.batch, "error": None,
    }  # fmt: skip


def _identical(cell: Cell, epoch: int, name: str, done: Epoch, plain: _Plain) -> int | None:
    """How many texts are the plain engine's; of its own greedy ones, those of its first epoch. None: cannot be judged.

    Sampled texts are equal where drafts are coupled and the plain engine draws from V2's noise.
    """
    right = plain.epochs.get((cell.temperature, cell.batch, 0 if name == BASELINE else epoch))
    if right is None or (name == BASELINE and (epoch == 0 or cell.temperature > 0)):
        return None
    if cell.temperature > 0 and not (CASES[name].coupled and plain.runner == "V2"):
        return None
    return same_texts(done.texts, right.texts)


def _arguments(subject: Subject, setting: Setting) -> tuple[str, ...]:
    length = max(map(len, subject.prompts)) + subject.sampling["max_tokens"] + max(setting.drafts) + 1
    given = ("--dtype", setting.dtype, "--max-model-len", str(length), "--seed", "0", *subject.arguments)
    if setting.device == "cpu":
        return (*given, "--enforce-eager", "--distributed-executor-backend", "uni")
    if setting.together:
        room = _cache_bytes(Path(subject.folder), max(setting.batches) * length, setting.dtype)
        return (*given, "--kv-cache-memory-bytes", str(room), "--gpu-memory-utilization", "0.01")
    return (*given, "--gpu-memory-utilization", str(GPU_MEMORY))


def _cache_bytes(folder: Path, tokens: int, dtype: str) -> int:
    """What the keys and values of so many tokens take, with some room."""
    config = json.loads((folder / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    numbers = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head
    return int(ROOM * tokens * numbers * DTYPES[dtype].itemsize)


def _environment(setting: Setting) -> dict[str, str]:
    if setting.device == "cpu":
        return environment(threads=1)
    number = setting.device.partition(":")[2]
    return {"HF_HUB_OFFLINE": "1"} | ({"CUDA_VISIBLE_DEVICES": number} if number else {})
