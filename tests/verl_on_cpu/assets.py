"""Writes what a CPU run of verl reads: the demo's trained model as a Hugging Face folder, and its problems as parquet.

The tokenizer gets a chat template that joins the messages as they are (the model knows no roles), and its end token the
name `<|im_end|>`, which verl looks up for every model of type qwen2. Token ids are those of the demo.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolltree.demo.assets import PROMPT_SEED, model_folder
from rolltree.demo.task import Problem, sample_problems

END = "<|im_end|>"
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True, slots=True)
class Assets:
    """Where the files of a run lie."""

    model: Path
    train: Path
    validation: Path


def write_assets(folder: Path, *, prompts: int, validation_prompts: int = 4) -> Assets:
    """Write model and data below `folder`, and return where.

    The validation problems are the first training problems, so that validation finds their trees.
    """
    folder.mkdir(parents=True, exist_ok=True)
    assets = Assets(folder / "model", folder / "train.parquet", folder / "validation.parquet")
    _write_model(assets.model)
    problems = sample_problems(prompts, PROMPT_SEED)
    _write_problems(assets.train, problems)
    _write_problems(assets.validation, problems[:validation_prompts])
    return assets


def _write_model(target: Path) -> None:
    source = model_folder()
    target.mkdir(exist_ok=True)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copyfile(source / name, target / name)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps(_byte_level(tokenizer)))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": END,
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _byte_level(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The same characters, the same ids, as the byte-level BPE without merges that transformers makes of any qwen2."""
    renamed = {"<eos>": END, " ": "\u0120", "\n": "\u010a"}
    vocabulary = {renamed.get(text, text): index for text, index in tokenizer["model"]["vocab"].items()}
    added = [
        {**token, "content": renamed.get(token["content"], token["content"])} for token in tokenizer["added_tokens"]
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>"},
    }


def _write_problems(path: Path, problems: list[Problem]) -> None:
    import pandas

    pandas.DataFrame([_row(index, problem) for index, problem in enumerate(problems)]).to_parquet(path)


def _row(index: int, problem: Problem) -> dict[str, object]:
    numbers = " ".join(map(str, problem.numbers))
    return {
        "data_source": "rolltree/sums",
        "prompt": [{"role": "user", "content": problem.prompt}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": numbers},
        "extra_info": {"index": index, "problem": f"sum-{index}"},
        "problem": f"sum-{index}",
    }
