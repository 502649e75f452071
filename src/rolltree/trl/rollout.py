"""`RolloutFunction`: the object to hand to TRL's GRPOTrainer as `rollout_func`.

Runs the trainer's own model through rolltree's engine and reports what it did. It does not train, copy
weights or touch random number generators, and it leaves the model as found: training mode, attention
implementation and gradients.

Invariants: completion i belongs to prompt i; the seeds depend on the run seed and the place in the run
alone, so a run with speculation, without, or with another cache has the same completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

from transformers import PreTrainedModel

from rolltree.budget import CostModel, add_estimate
from rolltree.cache import RolloutCache
from rolltree.config import CacheConfig, DraftConfig
from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request
from rolltree.engine.cost import measure_cost
from rolltree.engine.families import usable_positions
from rolltree.errors import InvalidInputError
from rolltree.runlog import SideChannel
from rolltree.store import RolloutStore
from rolltree.trl.generation import generate
from rolltree.trl.history import RolloutRecord
from rolltree.trl.metrics_file import MetricsFile
from rolltree.trl.settings import check_arguments, check_trainer, prompt_token_ids, request_seed, sampling_params
from rolltree.types import Drafter

STEP_DECAY = 0.97  # a version is one optimizer step here: an epoch of 8 keeps 0.78; 0.9 kept 0.43 and drafted worse
BYTES_PER_TOKEN = 140  # of the trees, shared tree included, at most: what a cache can hold of a large store
LENGTH_GRAIN = 64  # engine lengths are multiples: a slightly longer prompt needs no new KV cache


class RolloutFunction:
    """Generates a TRL trainer's completions: `GRPOTrainer(..., rollout_func=RolloutFunction())`.

    Prompts are keyed by their token ids; the cache's policy version is the trainer's global step. Sampling
    settings come from the trainer's arguments. Single process and data parallel; sharded weights are
    refused.
    """

    def __init__(
        self,
        *,
        cache: RolloutCache | None = None,
        draft: DraftConfig | None = None,
        cost: CostModel | Literal["measure"] | None = "measure",
        speculate: bool = True,
        slots: int = 64,
        seed: int | None = None,
        store: RolloutStore | None = None,
        run_dir: str | PathLike[str] | None = None,
        drafter: Drafter | None = None,
        compile: bool = False,
        remember_evaluation: bool = False,
    ) -> None:
        """
        Args:
            cache: Where rollouts are kept, to share or to bound it; None makes one with a decay per optimizer step.
            draft: How far and how boldly to draft.
            cost: What a step costs, which bounds the drafts of a batch: "measure" it at the first call (about a second
                for a small model), or None to verify everything that is drafted.
            speculate: False decodes plainly: same completions, no cache.
            slots: Completions decoded together.
            seed: Seed of the run; None takes the trainer's `args.seed`.
            store: Where every rollout is kept, with its log-probabilities, beyond the end of the process; a training
                that goes on finds its cache there.
            run_dir: Folder for the metrics of each call, from which `rolltree report` makes a page.
            drafter: Drafts in the place of rolltree's own, to compare with; it keeps its own memory and budget.
            compile: The engine's sampler; see EngineConfig.
            remember_evaluation: False drafts for the completions of the trainer's evaluation, and forgets each when it
                ends: no tree and no store holds it. True treats them like those of training.

        Raises:
            InvalidInputError: an argument is of the wrong kind, or two of them contradict each other.

        """
        check_arguments(slots=slots, seed=seed, cost=cost, draft=draft, cache=cache, store=store, run_dir=run_dir)
        if drafter is not None and (cache is not None or not speculate):
            raise InvalidInputError("drafter", drafter, "None with a cache or speculate=False", "Drop one of the two.")
        if cache is not None and not speculate:
            raise InvalidInputError("cache", "a RolloutCache", "None with speculate=False", "Drop one of the two.")
        if cache is not None and store is not None and cache.store is not store:
            raise InvalidInputError("store", str(store.path), "the cache's own", "Make it RolloutCache(store=store).")
        self.draft = draft or DraftConfig()
        ours = speculate and drafter is None
        if cache is None and ours:
            cache = RolloutCache(CacheConfig(decay=STEP_DECAY), store=store)
        self.drafter = TreeDrafter(cache, self.draft) if ours else None
        self._other, self._compile = drafter, compile
        self.cost, self.slots, self.seed = cost, slots, seed
        self.store, self.remember_evaluation = store, remember_evaluation
        self._loaded = False
        self._guard = SideChannel("rolltree's figures in the trainer's log")
        self._metrics = None if run_dir is None else MetricsFile(run_dir, self.drafter)
        self.history: list[RolloutRecord] = []
        """One record per call, oldest first."""
        self._engine: tuple[PreTrainedModel, Engine] | None = None
        self._calls = (True, -1, 0)

    @property
    def cache(self) -> RolloutCache | None:
        """The cache in use; None without speculation."""
        return self.drafter.cache if self.drafter else None

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, list[Any]]:
        """Complete each prompt once; TRL has already repeated them.

        Returns:
            `prompt_ids` and `completion_ids` (lists of token ids) and `logprobs` (under the sampling policy), one row a
            prompt.

        Raises:
            InvalidInputError: the trainer asks for something this adapter cannot do.
            RequestError: a completion failed; the message names the prompt.
        """
        check_trainer(trainer)
        prompt_ids = prompt_token_ids(trainer, prompts)
        requests = self._requests(prompt_ids, trainer)
        if self.drafter is not None:
            self._announce(self.drafter.cache, trainer.state.global_step)
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        engine = self._engine_for(model, prompt_ids, trainer.args.max_completion_length)
        engine.recorder.version = trainer.state.global_step
        results, record = generate(engine, requests, step=trainer.state.global_step, training=training)
        self._estimate(record)
        self._log(record, trainer)
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [list(result.token_ids) for result in results],
            "logprobs": [list(result.logprobs) for result in results],
        }

    def _announce(self, cache: RolloutCache, step: int) -> None:
        """Tell the cache the policy version; at the first call, fill it from the store."""
        cache.set_version(step)
        if self.store is not None and not self._loaded:
            config = cache.config
            self.store.load_into(
                cache, window=config.window, version=step, max_tokens=config.capacity_bytes // BYTES_PER_TOKEN
            )
        self._loaded = True

    def _requests(self, prompt_ids: list[list[int]], trainer: Any) -> list[Request]:
        run_seed = trainer.args.seed if self.seed is None else self.seed
        training, step = trainer.model.training, trainer.state.global_step
        process = trainer.accelerator.process_index
        call = self._count_call(training, step)
        remember = training or self.remember_evaluation
        return [
            Request(
                prompt_token_ids=ids,
                remember=remember,
                sampling=sampling_params(trainer, request_seed(run_seed, training, step, call, process, sample)),
            )
            for sample, ids in enumerate(prompt_ids)
        ]

    def _count_call(self, training: bool, step: int) -> int:
        """How many calls went before at this step: evaluation and small generation batches make several."""
        call = self._calls[2] + 1 if self._calls[:2] == (training, step) else 0
        self._calls = (training, step, call)
        return call

    def _engine_for(self, model: PreTrainedModel, prompt_ids: list[list[int]], completion_length: int) -> Engine:
        """The engine of the last call if it runs this model and is long enough, else a new one."""
        needed = max(map(len, prompt_ids)) + completion_length
        if self._engine is not None and self._engine[0] is model and self._engine[1].max_length >= needed:
            return self._engine[1]
        self._engine = None  # frees the old cache before the new one is allocated
        length = min(-(-needed // LENGTH_GRAIN) * LENGTH_GRAIN, usable_positions(model.config.get_text_config()))
        config = EngineConfig(
            slots=self.slots, max_length=length, max_draft=self.draft.max_draft, compile=self._compile
        )
        if self.drafter is not None and self.drafter.cost is None and self.cost is not None:
            self.drafter.cost = self._cost(model)
        drafter = self._other if self.drafter is None else self.drafter
        engine = Engine(model, config, drafter=drafter, store=self.store)
        self._engine = (model, engine)
        return engine

    def _cost(self, model: Any) -> CostModel | None:
        if self.cost != "measure":
            return self.cost
        return measure_cost(model, slots=self.slots, max_draft=self.draft.max_draft)

    def _estimate(self, record: RolloutRecord) -> None:
        """Count what drafts saved by the cost that was measured here; one that was given may be another machine's."""
        engine = record.engine
        if self.drafter is not None and self.cost == "measure" and engine.row_steps:
            longest = engine.padded / engine.row_steps - 1
            sums = {name: getattr(engine, name) for name in ("steps", "row_steps", "tokens", "drafted")}
            add_estimate(engine, self.drafter.cost, longest=longest, **sums)

    def _log(self, record: RolloutRecord, trainer: Any) -> None:
        """Keep the record, and average it into the trainer's next log line where TRL offers its metrics."""
        self.history.append(record)
        if self._metrics is not None:
            self._metrics.write(record, trainer)
        with self._guard:  # TRL's own dictionary, which another version may have changed
            metrics = getattr(trainer, "_metrics", {}).get("train" if record.training else "eval")
            if metrics is not None:
                for name, value in record.metrics().items():
                    metrics[name].append(value)
