"""Trainings by real TRL with vLLM in the trainer's processes: run by test_trl.py under torchrun, on two ranks.

`python -m tests.vllm.trl_training FOLDER`: each rank writes what it saw to FOLDER/RANK.json. GRPO first (the DAPO loss,
evaluation inside, at a temperature), then RLOO, greedy.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROMPTS, SAMPLES, STEPS = 4, 4, 4
"""Prompts of the data, samples of a prompt, steps of GRPO; a step takes two prompts, one in each rank."""
WIDTH = 16


def main(folder: Path) -> None:
    """Run all that is to be seen."""
    cpu_stand_ins()
    os.environ["ROLLTREE_DRAFT"] = str(WIDTH)
    seen = grpo(folder) | {"rloo": rloo(folder)}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))


def grpo(folder: Path) -> dict[str, Any]:
    """A training by the DAPO loss, with evaluations inside; then tool loops that differ between the ranks."""
    from trl import GRPOConfig, GRPOTrainer

    import rolltree.trl

    config = GRPOConfig(
        **settings(folder),
        max_steps=STEPS,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=SAMPLES,
    )
    made = trainer(GRPOTrainer, config, reward, eval_dataset=dataset(2))
    rolltree.trl.attach(made)
    attached = rolltree.trl.attach(made, run_dir=folder / "run")  # a second call replaces the first
    with marks_of(made) as calls:
        made.train()
    seen = {"log": made.state.log_history, "calls": calls, "stats": attached.stats(), "loss": config.loss_type}
    seen["tools"] = tool_loop(made, attached)
    attached.detach()
    seen["left"] = "generate" in vars(made.vllm_generation.llm), hasattr(made, "_rolltree_attachment")
    return seen


def rloo(folder: Path) -> dict[str, Any]:
    """Greedy: every token must be the most likely one of the policy that trains, float32 ties aside."""
    from trl import RLOOConfig, RLOOTrainer

    import rolltree.trl

    gaps: list[float] = []

    def judge(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        gaps.extend(gap(made, prompt, ids) for prompt, ids in zip(prompts, completion_ids, strict=True))
        return [float(place % 2) for place in range(len(prompts))]  # differ in a group, whose texts are alike

    made = trainer(RLOOTrainer, RLOOConfig(**settings(folder), max_steps=2, top_k=1), judge)
    attached = rolltree.trl.attach(made)
    before = attached.stats()
    made.train()
    accepted = attached.stats()["accepted"] - before["accepted"]
    return {"gaps": gaps, "accepted": accepted, "log": made.state.log_history}


def gap(trainer: Any, prompt: str, completion: list[int]) -> float:
    """How far the completion's unlikeliest token is behind the likeliest that could have been there."""
    import torch

    ids = trainer.processing_class(prompt)["input_ids"]
    with torch.no_grad():
        model = trainer.accelerator.unwrap_model(trainer.model)
        logits = model(torch.tensor([ids + completion])).logits[0, len(ids) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(completion)[:, None])[:, 0]
    return float((logits.max(-1).values - chosen).max())


def tool_loop(trainer: Any, attached: Any) -> dict[str, Any]:
    """TRL's own loop, two turns with a tool on the first rank and one on the other; the parser of answers stands in."""
    import trl.trainer.grpo_trainer as module

    asked = [problem.prompt for problem in problems(2, seed=99) for _ in range(2)]
    prompt_ids = trainer.processing_class(asked)["input_ids"]
    answer = {"role": "assistant", "content": ""}
    call = {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}
    module.parse_response = lambda *_, **__: answer | call
    trainer.model.train()
    trainer.tools, trainer._sync_tool_dicts, trainer._async_tool_dicts = [add], [{"add": add}] * 4, [{}] * 4
    trainer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    trainer.max_tool_calling_iterations = 2 - int(os.environ["RANK"])
    trainer.vllm_generation.max_completion_length = 20
    before = attached.stats()
    completion_ids, logprobs = trainer._generate_single_turn(prompt_ids, None, {}, 2)
    first = attached.stats()
    completions = [[answer | (call if row != 2 else {})] for row in range(4)]  # the third row asks for no tool
    prompts = [[{"role": "user", "content": text}] for text in asked]
    trainer._tool_call_loop(prompts, prompt_ids, completion_ids, completions, logprobs, None, {})
    later = attached.stats()
    attached.exchange("train")
    shared = attached.stats()
    pairs = {"first": (before, first), "later": (first, later), "shared": (later, shared)}
    return {
        f"{name}_{of}": now[f"cache_{of}"] - then[f"cache_{of}"]
        for name, (then, now) in pairs.items()
        for of in ("prompts", "rollouts")
    }


def add() -> str:
    """A tool's answer."""
    return " 1+2=3. "


@contextmanager
def marks_of(trainer: Any) -> Iterator[list[dict[str, Any]]]:
    """What requests were marked with meanwhile, and what the trainer knew."""
    import rolltree.trl.engines as engines

    calls: list[dict[str, Any]] = []
    original = engines._marked

    def marked(*arguments: Any) -> Any:
        new = original(*arguments)
        knew = {"step": trainer.state.global_step, "training": trainer.model.training}
        calls.append(knew | new.extra_args["rolltree"])
        return new

    engines._marked = marked  # type: ignore[assignment]
    try:
        yield calls
    finally:
        engines._marked = original


def settings(folder: Path) -> dict[str, Any]:
    """What both trainers are set to."""
    return {
        "output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "seed": 3, "logging_steps": 1, "learning_rate": 1e-4,
        "use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 256, "vllm_gpu_memory_utilization": 0.1,
        "per_device_train_batch_size": SAMPLES, "num_generations": SAMPLES, "max_completion_length": 100,
    }  # fmt: skip


def trainer(kind: Any, config: Any, reward: Any, **data: Any) -> Any:
    """A trainer with the demo's model."""
    from rolltree.demo.assets import load_tokenizer, model_folder

    return kind(
        model=str(model_folder()),
        reward_funcs=reward,
        args=config,
        train_dataset=dataset(PROMPTS),
        processing_class=load_tokenizer(),
        **data,
    )


def problems(count: int, seed: int = 7) -> list[Any]:
    from rolltree.demo.task import sample_problems

    return sample_problems(count, seed)


def dataset(count: int) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": problem.prompt} for problem in problems(count)])


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    answers = {problem.prompt: problem for problem in problems(PROMPTS)}
    return [answers[prompt].reward(text) for prompt, text in zip(prompts, completions, strict=True)]


def cpu_stand_ins() -> None:
    """What TRL's colocate mode lacks on a CPU: new weights in vLLM's CPU build, the trainer's type, no compilation.

    The second trainer gets the first one's engine, which takes ten seconds to start.
    """
    import trl.generation.vllm_generation as generation

    from tests.verl_on_cpu.compat import apply_to_vllm

    apply_to_vllm()
    settings = {"enforce_eager": True, "dtype": "float32", "additional_config": {"rolltree": {"cost": "off"}}}
    make = generation.LLM
    engines: list[Any] = []

    def one_engine(**arguments: Any) -> Any:
        if not engines:
            engines.append(make(**arguments, **settings))
        return engines[0]

    generation.LLM = one_engine


if __name__ == "__main__":
    main(Path(sys.argv[1]))
