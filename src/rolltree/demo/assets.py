"""Loads the demo's model and tokenizer from the files shipped in the package. Downloads nothing."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROMPT_SEED = 7  # of the demo's problems, which the shipped model was never trained on


def model_folder() -> Path:
    """The folder with config.json, model.safetensors and the tokenizer files."""
    return Path(str(files("rolltree.demo"))) / "model"


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The character tokenizer; pads on the left."""
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(model_folder(), local_files_only=True)
    return tokenizer


def load_model() -> PreTrainedModel:
    """A fresh float32 copy of the shipped weights, in evaluation mode."""
    import torch
    from transformers import Qwen2ForCausalLM

    model: PreTrainedModel = Qwen2ForCausalLM.from_pretrained(
        model_folder(), dtype=torch.float32, local_files_only=True
    )
    return model
