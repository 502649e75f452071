"""Real prompts for the models that have real weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from rolltree.bench.engine import Workload
from rolltree.bench.gpu_shapes import DTYPES, check_device
from rolltree.errors import InvalidInputError

SYSTEM_LENGTH = 96  # completion tokens of SmolLM2: answers are short sums


def workload(name: str, model: PreTrainedModel, *, train_epochs: int, samples: int) -> Workload:
    """Sums of the demo, on which its model can be trained first, or reasoning-gym problems for SmolLM2-135M."""
    if name == "demo":
        from rolltree.bench.demo_workload import demo_workload

        made = demo_workload(samples=samples, train_epochs=train_epochs)
        return moved(made, str(model.device), str(model.dtype).removeprefix("torch."))
    return _smollm2(model, samples)


def moved(workload: Workload, device: str, dtype: str) -> Workload:
    """The same workload with its model on `device`; InvalidInputError for what is not there."""
    check_device(device)
    if dtype not in DTYPES:
        raise InvalidInputError("--dtype", dtype, f"one of {', '.join(DTYPES)}")
    model: Any = workload.model
    return replace(workload, model=model.to(device, DTYPES[dtype]))


def _smollm2(model: PreTrainedModel, samples: int, prompts: int = 32) -> Workload:
    from rolltree.demo.smollm2 import load, load_problems

    tokenizer: Any = load()[1]
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)["input_ids"]
        for question, _ in load_problems(prompts, seed=0)
    ]
    end = int(tokenizer.eos_token_id)
    return Workload(
        name="smollm2-135m, chain_sum",
        model=model,
        prompts=[list(map(int, ids)) for ids in texts],
        samples=samples,
        max_tokens=SYSTEM_LENGTH,
        stop_token_ids=(end,),
        pad_token_id=end,
    )
