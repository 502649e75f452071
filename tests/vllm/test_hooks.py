"""Hooks in real vLLM: all of them broken, an engine without rolltree runs; one missing, an engine with it says so."""

from __future__ import annotations

from typing import Any

import pytest

from rolltree.errors import InvalidInputError
from rolltree.vllm import compat, hooks, plugin
from tests.vllm.engines import METHODS, engine, generate, logged, prompts


def broken(*_: Any) -> None:
    raise ImportError("planted: no module named vllm.v1.moved")


def test_a_plugin_that_fails_ends_no_engine_that_did_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of our functions raises; vLLM generates."""
    for hook in (*hooks.FOR_ALL, *hooks.FOR_DRAFTING):
        monkeypatch.setattr(compat, hook.install, broken)
    monkeypatch.setattr(hooks, "FAILED", {})
    plugin.register()
    with engine("none", max_num_seqs=4) as llm:
        assert len(generate(llm, prompts(2), max_tokens=4)) == 2
    assert set(hooks.FAILED) >= {hook.install for hook in hooks.FOR_ALL}


def test_every_hook_is_in_place() -> None:
    """In the vLLM that is tested nothing is missing; when this fails, vLLM has moved something."""
    hooks.install((*hooks.FOR_ALL, *hooks.FOR_DRAFTING))
    assert hooks.FAILED == {}
    hooks.refuse_missing()


def gone(monkeypatch: pytest.MonkeyPatch) -> str:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    monkeypatch.delattr(GPUModelRunner, "_update_states")
    return "GPUModelRunner has no _update_states"


def another_signature(monkeypatch: pytest.MonkeyPatch) -> str:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    monkeypatch.setattr(GPUModelRunner, "_update_states", lambda self, plan, output: None)
    return r"_update_states takes \(plan, output\), not \(scheduler_output\)"


def another_class(monkeypatch: pytest.MonkeyPatch) -> str:
    from vllm.v1.worker import gpu_model_runner

    monkeypatch.delattr(gpu_model_runner, "GPUModelRunner")
    return "cannot import name 'GPUModelRunner'"


def another_field(monkeypatch: pytest.MonkeyPatch) -> str:
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    monkeypatch.delitem(CachedRequestState.__annotations__, "output_token_ids")
    return "CachedRequestState has no output_token_ids"


def no_kernel_fix(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(compat, "fix_cpu_expand", broken)
    return r"expand_kernel \(samples on a CPU may be wrong"


@pytest.mark.parametrize("change", [gone, another_signature, another_class, another_field, no_kernel_fix])
def test_a_missing_hook_stops_the_start_of_who_asked(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With version, hook and fix, before the model is loaded; nothing says that it is on."""
    plugin.register()
    reason = change(monkeypatch)
    with (
        logged() as lines,
        pytest.raises(
            InvalidInputError, match=rf"vllm = '\d.*{reason}.*Use vllm {' or '.join(hooks.TESTED)}, or start"
        ),
        engine(),
    ):
        pass
    assert not lines


def test_a_worker_refuses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the front end's hook is what is missing, the proposer itself refuses."""
    from vllm.v1.engine.input_processor import InputProcessor

    plugin.register()
    monkeypatch.setattr(InputProcessor, "__init__", InputProcessor.__init__.__wrapped__)
    monkeypatch.setattr(compat, "check_engines", broken)
    gone(monkeypatch)
    with pytest.raises(Exception, match=r"GPUModelRunner has no _update_states"), engine():
        pass


def test_a_width_beyond_vllms_stops_the_start() -> None:
    """vLLM's own check is an assertion in the first long draft; and our number is vLLM's."""
    from vllm.v1.sample.rejection_sampler import MAX_SPEC_LEN

    assert compat.longest_draft() == MAX_SPEC_LEN
    wide = {**(METHODS["rolltree"] or {}), "num_speculative_tokens": MAX_SPEC_LEN + 1}
    with (
        pytest.raises(InvalidInputError, match="num_speculative_tokens = 129: must be 1 to 128"),
        engine(speculative_config=wide),
    ):
        pass


def test_a_refused_option_is_the_clients_fault_to_vllm() -> None:
    """The error is ours and vLLM's own at once, and its text is the sentence."""
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(InvalidInputError, match=r"^extra_args\.rolltree_kind = 'x': must be one of") as caught:
        plugin.check_request({"rolltree_kind": "x"})
    assert isinstance(caught.value, VLLMValidationError)
    assert (caught.value.parameter, caught.value.value) == ("extra_args.rolltree_kind", "x")
    assert str(caught.value).endswith("run-ahead.")
