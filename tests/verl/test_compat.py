"""Each patch of `tests.verl_on_cpu.compat` is needed. A test that fails here says which one can go."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
import transformers
from vllm.model_executor.layers import utils as layers

from rolltree.demo.assets import model_folder
from tests.verl_on_cpu import compat
from tests.verl_on_cpu.assets import write_assets
from tests.verl_on_cpu.settings import CHECKOUT, environment

GLOO = """
import os, torch
os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
torch.distributed.init_process_group("cpu:gloo,cpu:gloo", init_method="tcp://localhost:0", rank=0, world_size=1)
"""


def test_gloo_is_asked_for_twice() -> None:
    import verl.utils.distributed as distributed

    assert "cpu:gloo,{" in inspect.getsource(distributed)
    plain = subprocess.run([sys.executable, "-c", GLOO], capture_output=True, text=True)
    assert plain.returncode != 0, "torch takes the backend that verl asks for: _gloo_once can go"
    patched = f"import torch\nfrom tests.verl_on_cpu import compat\ncompat.apply()\n{GLOO}"
    result = subprocess.run([sys.executable, "-c", patched], cwd=CHECKOUT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_critic_asks_for_flash_attention() -> None:
    import verl.utils.model as model

    assert 'attn_implementation="flash_attention_2"' in inspect.getsource(model.load_valuehead_model)


def test_vllm_drops_the_weights_that_verl_updates() -> None:
    layer = torch.nn.Linear(64, 64, bias=False)
    layers.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    assert layer.weight.numel() == 0, "vLLM keeps the weights: keep_weight can go"
    layer = torch.nn.Linear(64, 64, bias=False)
    compat.keep_weight(layer, remove_weight=True)
    assert layer.weight.shape == (64, 64)


def test_vllm_is_not_installed_under_its_name() -> None:
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("vllm")


def test_transformers_makes_its_own_tokenizer_of_any_qwen2(tmp_path: Path) -> None:
    """The written tokenizer gives the demo's ids; without the byte-level names blanks and line ends were lost."""
    assets = write_assets(tmp_path, prompts=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(assets.model)
    text = "sum 12 7\n1+2: 3.#=,abc"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    demo = transformers.PreTrainedTokenizerFast.from_pretrained(model_folder())
    assert demo.encode(text, add_special_tokens=False) == ids
    assert tokenizer.eos_token_id == demo.eos_token_id


EXPAND = """
from vllm.platforms import current_platform
assert current_platform.is_cpu()
from rolltree.vllm import compat_cpu, plugin
plugin.register()
import torch
from vllm.utils import cpu_triton_utils
out = torch.full((3,), -1.0)
ends = torch.tensor([1, 3], dtype=torch.int32)
cpu_triton_utils.expand_kernel[(2,)](out, torch.tensor([0.5, 2.0]), ends, 0, 1, MAX_NUM_TOKENS=8)
print(compat_cpu.cpu_expand_is_wrong(), out.tolist())
"""


def test_verls_vllm_samples_at_the_right_temperature(tmp_path: Path) -> None:
    """vllm#55005 in the version that verl runs with: the kernel it calls is the repaired one."""
    result = subprocess.run(
        [sys.executable, "-c", EXPAND], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "True [0.5, 2.0, 2.0]"
