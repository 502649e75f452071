"""Trainers that start vLLM themselves: the line that turns drafts on, what is inferred, what is missing.

The one description of each: `rolltree doctor --for NAME` and the table of docs/frameworks.md are made from it. verl and
TRL have adapters, checks and pages of their own. Imports nothing of a trainer or of vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass

SWITCH = "ROLLTREE_DRAFT"
EXPORT = f"export {SWITCH}=16"
JSON = '{"method": "custom_class", "model": "rolltree.vllm.Proposer", "num_speculative_tokens": 16}'
YAML = JSON.replace('"', "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """One trainer, as it was read on a day."""

    name: str
    """As its authors write it."""
    package: str
    """As pip and its metadata call it."""
    version: str
    """That was read; others are not known to differ."""
    source: str
    """Where that is from: month of the release, or commit and day."""
    engine: str
    """The vLLM that it installs."""
    line: str
    """What turns drafts on by the switch."""
    own: str
    """The same by a setting of its own; empty: it has none."""
    inferred: str
    """What rolltree learns from what the trainer sends to vLLM anyway."""
    missing: str
    """What its user goes without."""
    checked: str = ""
    """What of it `make frameworks-check` runs on a CPU; empty: it was only read."""


FRAMEWORKS = {
    "openrlhf": Framework(
        name="OpenRLHF",
        package="openrlhf",
        version="0.11.2",
        source="2026-09",
        engine="0.29.0",
        line=EXPORT,
        own="",
        inferred="version",
        missing="kind",
        checked="its engine's arguments, its sampling parameters",
    ),
    "skyrl": Framework(
        name="SkyRL",
        package="skyrl",
        version="0.4.0",
        source="2026-10",
        engine="0.30.0",
        line=EXPORT,
        own=f"generator.inference_engine.engine_init_kwargs.speculative_config='{YAML}'",
        inferred="version, session",
        missing="kind",
        checked="its server's arguments, its sampling parameters",
    ),
    "nemo-rl": Framework(
        name="NeMo-RL",
        package="nemo-rl",
        version="0.6.0",
        source="commit 7ea279a, 2026-08-22",
        engine="0.25.1",
        line=EXPORT,
        own=f"'++policy.generation.vllm_kwargs.speculative_config={YAML}'",
        inferred="version",
        missing="kind",
    ),
    "prime-rl": Framework(
        name="prime-rl",
        package="prime-rl",
        version="0.8.0",
        source="commit 559b447, 2026-08-21",
        engine="0.26 or newer",
        line=f'inference.env_vars = {{{SWITCH} = "16"}}',
        own='inference.vllm.speculative_config = {method = "custom_class", model = "rolltree.vllm.Proposer", '
        "num_speculative_tokens = 16}",
        inferred="version, session",
        missing="kind",
    ),
    "ms-swift": Framework(
        name="ms-swift",
        package="ms-swift",
        version="4.6.0",
        source="2026-10",
        engine="the user's",
        line=EXPORT,
        own=f"--vllm_engine_kwargs '{{\"speculative_config\": {JSON}}}'",
        inferred="version",
        missing="kind",
        checked="its engine's arguments, its sampling parameters",
    ),
    "unsloth": Framework(
        name="Unsloth",
        package="unsloth_zoo",
        version="2026.10.9",
        source="2026-10",
        engine="the user's",
        line=EXPORT,
        own="",
        inferred="version; not of a LoRA adapter",
        missing="kind",
        checked="its engine's arguments (`load_vllm`)",
    ),
    "roll": Framework(
        name="ROLL",
        package="roll",
        version="0.3.0",
        source="commit 8eb27cc, 2026-08-19",
        engine="0.10.2: too old; or a nightly build",
        line=f'actor_infer.system_envs: {{{SWITCH}: "16"}}',
        own=f"actor_infer.strategy_args.strategy_config.speculative_config: {JSON}",
        inferred="version",
        missing="kind",
    ),
}
"""By the name that `rolltree doctor --for` takes."""
