"""Compares the stand-ins of `kernels` with vLLM's own kernels, launch by launch, by triton's interpreter.

`make v2-kernels` runs it in an environment of its own, which has triton; it is not part of any test run. Real engines
generate what the tests generate. Each launch of a kernel that has a stand-in runs twice on the same tensors, by the
interpreter and by NumPy, and all tensors must come out equal; so must the results of the standard verification, which
is one function here. Exit 1 where one differs, or where a stand-in was never launched.

vLLM asks triton for a backend of the CPU, which no wheel has: a name in its table is enough, since the interpreter
never asks it for anything. The interpreter of triton 3.9 gives a scalar comparison the type of its operands, so masks
are made boolean.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before triton, and before vLLM, which imports it

import numpy as np
import pytest
import torch
import triton.backends
from triton.runtime import interpreter

from tests.vllm.conftest import FAST
from tests.vllm.v2 import kernels

CLOSE = {"rtol": 1e-6, "atol": 4e-6, "equal_nan": True}
"""Log-probabilities near 0 are differences of logits of some tens, whose last bit is 2e-6."""
SEEN: dict[str, list[int]] = defaultdict(lambda: [0, 0])
"""By name of a kernel: launches, and how many of them differed."""


class _Driver:
    @classmethod
    def is_active(cls) -> bool:
        return True


def _masks_are_boolean(patch: pytest.MonkeyPatch, name: str, index: int) -> None:
    original = getattr(interpreter.InterpreterBuilder, name)

    def call(self: Any, *args: Any) -> Any:
        mask = args[index]
        mask.data = mask.data.astype(np.bool_)
        return original(self, *args)

    patch.setattr(interpreter.InterpreterBuilder, name, call)


def _run_twice(patch: pytest.MonkeyPatch) -> None:
    stock = interpreter.InterpretedFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        name = f"{self.fn.__module__}.{self.fn.__qualname__}"
        ours = kernels.KERNELS.get(name)
        if ours is None:
            return stock(self, *args, grid=grid, warmup=warmup, **kwargs)
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        before = [x.clone() for x in tensors]
        stock(self, *args, grid=grid, warmup=warmup, **kwargs)
        theirs = [x.clone() for x in tensors]
        for x, old in zip(tensors, before, strict=True):
            x.copy_(old)
        ours(*args, **kwargs)
        SEEN[name][0] += 1
        SEEN[name][1] += not all(_equal(x, y) for x, y in zip(tensors, theirs, strict=True))
        return None

    patch.setattr(interpreter.InterpretedFunction, "run", run)


def _equal(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.equal(ours, theirs) or (ours.is_floating_point() and torch.allclose(ours, theirs, **CLOSE))


def _verify_twice(patch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    stock = rejection_sampler.rejection_sample

    def rejection_sample(*args: Any, **kwargs: Any) -> Any:
        sampled, counts = stock(*args, **kwargs)
        ours, our_counts = kernels.rejection_sample(*args, **kwargs)
        same = torch.equal(counts, our_counts)
        rows = zip(sampled, ours, counts.tolist(), strict=True)
        SEEN["rejection_sample"][0] += 1
        SEEN["rejection_sample"][1] += not (same and all(torch.equal(x[:n], y[:n]) for x, y, n in rows))
        return sampled, counts

    patch.setattr(rejection_sampler, "rejection_sample", rejection_sample)


@contextmanager
def comparing() -> Iterator[None]:
    """V2 engines on this CPU by the interpreter, each launch compared, for the duration of the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FAST.items():
            patch.setenv(name, value)
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
        patch.setenv("TORCHDYNAMO_DISABLE", "1")  # torch's compiler would ask the driver
        patch.setitem(triton.backends.backends, "cpu", triton.backends.Backend(compiler=None, driver=_Driver))
        _masks_are_boolean(patch, "create_masked_load", 1)
        _masks_are_boolean(patch, "create_masked_store", 2)
        _run_twice(patch)
        from vllm.v1.sample.ops import topk_topp_sampler

        patch.setattr(topk_topp_sampler, "HAS_TRITON", False)  # its kernel fails in the interpreter
        _verify_twice(patch)
        yield


def main() -> int:
    """Generate twice, with drafts the second time; print a line a kernel."""
    with comparing():
        from tests.vllm.engines import _engine, prompts

        settings = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 192}
        with _engine("rolltree", **settings) as llm:
            for _ in range(2):
                llm.generate(prompts(len(sampled := _settings())), sampled, use_tqdm=False)
    missing = sorted(name for name in kernels.KERNELS if name not in SEEN)
    for name, (count, different) in sorted(SEEN.items()):
        print(f"{name.removeprefix('vllm.v1.worker.gpu.'):70s} {count:6d} launches, {different} different")
    print("never launched:", missing or "none")
    return int(bool(missing) or any(different for _, different in SEEN.values()))


def _settings() -> list[Any]:
    from vllm.sampling_params import StructuredOutputsParams

    from vllm import SamplingParams

    asked: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "logprobs": 2, "prompt_logprobs": 1},
        {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
        {"bad_words": ["then", "gives"]},
        {"allowed_token_ids": list(range(0, 48, 2))},
        {"min_tokens": 10, "stop_token_ids": [14]},
        {"structured_outputs": StructuredOutputsParams(regex="[0-9]{3}\\+[0-9]{3}")},
    ]
    defaults: dict[str, Any] = {"temperature": 1.0, "max_tokens": 24}
    return [SamplingParams(seed=i, **(defaults | options)) for i, options in enumerate(asked)]


if __name__ == "__main__":
    sys.exit(main())
