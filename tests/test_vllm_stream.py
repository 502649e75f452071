"""What `wait: stream` needs of vLLM and a device, without either: refusals, the launch, where drafts are placed."""

from __future__ import annotations

import ctypes
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rolltree.errors import InvalidInputError, RolltreeError
from rolltree.serving.streamed import TURNS
from rolltree.vllm import checks, compat, compat_v2, hooks, host_function
from rolltree.vllm.stream_turns import StreamTurns
from tests.fake_vllm import fake_config


def v2_config(**options: object) -> Any:
    config = fake_config(**options)
    config.use_v2_model_runner = True
    config.device_config = SimpleNamespace(device_type="cuda")
    return config


@pytest.fixture(name="fitting", autouse=True)
def fixture_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM whose V2 runner fits, on a device that takes host functions."""
    for hook in (*hooks.FOR_ALL, *hooks.FOR_DRAFTING):
        monkeypatch.setattr(compat, hook.install, lambda: None)
    monkeypatch.setattr(hooks, "FAILED", {})
    monkeypatch.setattr(compat_v2, "runner_fits", lambda: True)
    monkeypatch.setattr(host_function, "_function", lambda: None)


def on_one_rank(config: Any) -> Any:
    return config


def on_two_ranks(config: Any) -> Any:
    config.parallel_config.world_size = 2
    return config


def in_v1(config: Any) -> Any:
    config.use_v2_model_runner = False
    return config


def on_a_cpu(config: Any) -> Any:
    config.device_config.device_type = "cpu"
    return config


def with_ragged_lengths(config: Any) -> Any:
    config.additional_config = {"rolltree": {**config.additional_config.get("rolltree", {}), "lengths": "ragged"}}
    return config


def with_vllms_own_budget(config: Any) -> Any:
    config.speculative_config.enable_adaptive_verification = True
    config.compilation_config = SimpleNamespace(cudagraph_mode=SimpleNamespace(has_full_cudagraphs=lambda: True))
    return config


REFUSED = [
    (with_ragged_lengths, "with `lengths: ragged`"),
    (with_vllms_own_budget, "with vLLM's adaptive verification"),
    (in_v1, "in the V1 model runner"),
    (on_two_ranks, "with several ranks"),
    (on_a_cpu, "on a device of type 'cpu'"),
]


def test_a_stream_is_used_where_it_can_be() -> None:
    assert checks.check_engine(on_one_rank(v2_config(wait="stream"))).wait == "stream"
    assert checks.check_engine(on_one_rank(v2_config())).wait == "stream", "by itself"
    assert checks.check_engine(on_one_rank(v2_config(wait="host"))).wait == "host"


@pytest.mark.parametrize("change", [change for change, _ in REFUSED])
def test_where_it_cannot_be_the_host_waits_without_a_word(change: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert checks.check_engine(change(v2_config()), logging.getLogger()).wait == "host"
    assert not caplog.messages


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_what_cannot_wait_in_a_stream_says_so(
    change: Any, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An option is refused; what the environment wishes is left out, with a line of the worker's log."""
    with pytest.raises(InvalidInputError, match=rf"rolltree\.wait = 'stream': must be host {reason}.*Leave it out"):
        checks.check_engine(change(v2_config(wait="stream")))
    monkeypatch.setenv("ROLLTREE_WAIT", "stream")
    assert checks.check_engine(change(v2_config())).wait == "host"
    assert not caplog.messages
    assert checks.check_engine(change(v2_config()), logging.getLogger()).wait == "host"
    (line,) = caplog.messages
    assert f"ROLLTREE_WAIT=stream is not used {reason}" in line


def test_a_driver_without_the_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of what is missing."""
    monkeypatch.undo()
    monkeypatch.setattr(host_function, "LIBRARY", "libno-such-driver.so.1")
    assert "without cuLaunchHostFunc of libno-such-driver.so.1" in host_function.refusal("cuda")
    monkeypatch.setattr(host_function.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert "without cuLaunchHostFunc" in host_function.refusal("cuda")


def test_the_drivers_function_gets_stream_function_and_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them whole pointers; a code other than zero is an error."""
    monkeypatch.undo()
    seen: list[tuple[int, ...]] = []
    codes = [0, 700]
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    function = kind(lambda *given: seen.append(given) or codes.pop(0))
    joined: list[bool] = []
    stream = SimpleNamespace(cuda_stream=2**40 + 1, synchronize=lambda: joined.append(True))
    monkeypatch.setattr(host_function.ctypes, "CDLL", lambda name: SimpleNamespace(cuLaunchHostFunc=function))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    functions = host_function.HostFunctions("cuda:0")
    functions.wait()
    functions.launch((2**41 + 1, 2**42 + 1))
    with pytest.raises(RolltreeError, match="cuLaunchHostFunc returned 700"):
        functions.launch((1, 2))
    functions.wait()
    assert seen == [(2**40 + 1, 2**41 + 1, 2**42 + 1), (2**40 + 1, 1, 2)]
    assert joined == [True]


def test_drafts_are_placed_and_the_rest_is_the_last_token() -> None:
    """Rows of a step are fewer than the buffers have, and in other slots."""
    launched: list[tuple[int, int]] = []
    states = SimpleNamespace(total_len=SimpleNamespace(gpu=torch.arange(10, 18, dtype=torch.int32)))
    stream = SimpleNamespace(launch=launched.append)
    turns = StreamTurns(states, torch.device("cpu"), 4, 3, stream)
    slots = torch.tensor([5, 0])
    turns.launch(TURNS - 1, (1, 2), torch.tensor([3, 1, 9, 9], dtype=torch.int32), slots)
    assert launched == [(1, 2)]
    row = turns.buffers[TURNS - 1]
    assert row[:4].tolist() == [3, 1, 0, 0]
    assert row[4:8].tolist() == [15, 10, 0, 0]
    row[8:].reshape(4, 4)[:] = [[2, 21, 22, 99], [0, 99, 99, 99], [3, 1, 1, 1], [3, 1, 1, 1]]
    assert turns.place(TURNS - 1, torch.tensor([7, 8])).tolist() == [[21, 22, 7], [8, 8, 8]]
    assert turns.place(None, torch.tensor([7, 8])).tolist() == [[7] * 3, [8] * 3]
