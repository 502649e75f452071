"""The lines of verl's configuration that turn rolltree on, and the same filled in where they are not set by hand.

Works on any configuration that OmegaConf can select from; imports no verl.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.verl.options import WHERE, VerlOptions
from rolltree.verl.router import CONFIG_PATH

PROPOSER = "rolltree.vllm.Proposer"
MANAGER = "rolltree.verl.manager.AgentLoopManager"
ROLLOUT = "actor_rollout_ref.rollout"
SPECULATIVE = f"{ROLLOUT}.engine_kwargs.vllm.speculative_config"
ADDITIONAL = f"{ROLLOUT}.engine_kwargs.vllm.additional_config"
ENGINE = f"{ADDITIONAL}.rolltree"
SHARE, COUPLED = f"{ENGINE}.share", f"{ENGINE}.coupled"
SAMPLER = "trainer.v1.sampler.custom_sampler"

ALGORITHMS = ("grpo", "ppo", "dapo", "multi-turn", "async")


def config_lines(algorithm: str = "grpo", *, explicit: bool = False, options: VerlOptions | None = None) -> list[str]:
    """Return the overrides for verl's command line.

    Args:
        algorithm: one of `ALGORITHMS`. The lines are the same for all: what differs is found out when verl starts.
        explicit: all lines, and not only the two that fill in the rest.
        options: what differs from its default becomes a line.

    Raises:
        InvalidInputError: an unknown algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise InvalidInputError("algorithm", algorithm, f"one of {', '.join(ALGORITHMS)}")
    options = options or VerlOptions()
    lines = [f"{SAMPLER}.path=pkg://rolltree.verl", f"{SAMPLER}.name=sampler"]
    if explicit:
        lines += [
            f"'+{SPECULATIVE}={_hydra(speculative_config(options.max_draft))}'",
            f"+{ROLLOUT}.agent.agent_loop_manager_class={MANAGER}",
            *[f"{ROLLOUT}.router_config_path={CONFIG_PATH}"] * options.routes,
            *[f"+{SHARE}=ray"] * options.share,
        ]
        lines += [f"++{COUPLED}=True"] * options.coupled
    return lines + _option_lines(options)


def speculative_config(max_draft: int) -> dict[str, Any]:
    """Return vLLM's `speculative_config`."""
    return {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": max_draft}


def fill_in(config: Any, options: VerlOptions) -> list[str]:
    """Set what is not set, and return what was: `name=value` lines. What is set by hand stays."""
    filled: list[str] = []
    if (options.speculate or options.coupled) and _get(config, SPECULATIVE) is None and not _has_mtp(config):
        _set(config, SPECULATIVE, speculative_config(options.max_draft), filled)
    if drafts_with_rolltree(config):
        _fill_in_engine(config, options.engine_options, filled)
    if _get(config, f"{ROLLOUT}.agent.agent_loop_manager_class") is None and drafts_with_rolltree(config):
        _set(config, f"{ROLLOUT}.agent.agent_loop_manager_class", MANAGER, filled)
    is_routed = _get(config, f"{ROLLOUT}.router_config_path") is not None
    if options.routes and not is_routed and replicas(config) > 1 and drafts_with_rolltree(config):
        _set(config, f"{ROLLOUT}.router_config_path", str(CONFIG_PATH), filled)
    if options.share and replicas(config) > 1 and drafts_with_rolltree(config) and _can_share(config):
        _set(config, SHARE, "ray", filled)
    policy = f"{ROLLOUT}.scheduling_policy"
    if options.run_ahead and runs_ahead(config) and _get(config, policy) != "priority":
        _set(config, policy, "priority", filled)  # run-ahead waits behind all others
    return filled


def _fill_in_engine(config: Any, options: Mapping[str, Any], filled: list[str]) -> None:
    """Set options of vLLM's engines that are not set by hand."""
    if options and isinstance(given := _get(config, ADDITIONAL), str):
        raise InvalidInputError(ADDITIONAL, given, f"a mapping, not JSON text, where {WHERE} sets {', '.join(options)}")
    for name, value in options.items():
        if _get(config, f"{ENGINE}.{name}") is None:
            _set(config, f"{ENGINE}.{name}", value, filled)


def runs_ahead(config: Any) -> bool:
    """Return whether run-ahead is possible, once `fill_in` has set what it sets.

    Generation and training take turns, so that batches have tails; drafts and marks are rolltree's; and it is known
    which replica a prompt will go to.
    """
    is_synchronous = str(_get(config, "trainer.v1.trainer_mode") or "sync") == "sync"
    is_ours = drafts_with_rolltree(config) and str(_get(config, f"{ROLLOUT}.agent.agent_loop_manager_class")) == MANAGER
    router = str(_get(config, f"{ROLLOUT}.router_config_path"))
    return is_synchronous and is_ours and (replicas(config) == 1 or router == str(CONFIG_PATH))


def replicas(config: Any) -> int:
    """Return how many vLLM servers verl is going to start, on the trainer's devices and on those of rollouts alone.

    Raises:
        InvalidInputError: one of verl's numbers is none.
    """
    width = 1
    for part in ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size"):
        width *= _whole(config, f"{ROLLOUT}.{part}", 1) or 1
    shared = _whole(config, "trainer.n_gpus_per_node", 1) * _whole(config, "trainer.nnodes", 1)
    own = _whole(config, f"{ROLLOUT}.n_gpus_per_node", 0) * _whole(config, f"{ROLLOUT}.nnodes", 0)
    return shared // width + own // width


def _whole(config: Any, name: str, default: int) -> int:
    value = _get(config, name)
    try:
        number = default if value is None else int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0 or (isinstance(value, float) and value != number):
        raise InvalidInputError(name, value, "a whole number")
    return number


def drafts_with_rolltree(config: Any) -> bool:
    """Return whether vLLM's drafts are rolltree's, once `fill_in` has set what it sets."""
    given = _get(config, SPECULATIVE)
    if isinstance(given, str):  # vLLM takes JSON text as well
        with suppress(ValueError):
            given = json.loads(given)
    return isinstance(given, Mapping) and str(given.get("model", "")).startswith("rolltree.vllm")


def _can_share(config: Any) -> bool:
    """Return whether vLLM's option is not set by hand, and can be set."""
    given = _get(config, ADDITIONAL)
    return given is None or (isinstance(given, Mapping) and _get(config, SHARE) is None)


def _has_mtp(config: Any) -> bool:
    """Return whether the model's own heads draft (multi-token prediction): verl makes `speculative_config` itself."""
    return bool(_get(config, f"{ROLLOUT}.mtp.enable") and _get(config, f"{ROLLOUT}.mtp.enable_rollout"))


def _option_lines(options: VerlOptions) -> list[str]:
    default = VerlOptions()
    names = [name for name in VerlOptions.__dataclass_fields__ if getattr(options, name) != getattr(default, name)]
    values = {name: getattr(options, name) for name in names}
    return [f"+{WHERE}.{name}={_hydra(v) if isinstance(v, Mapping) else v}" for name, v in values.items()]


def _hydra(mapping: Mapping[str, Any]) -> str:
    return "{" + ",".join(f"{name}:{value}" for name, value in mapping.items()) + "}"


def _get(config: Any, name: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.select(config, name)


def _set(config: Any, name: str, value: Any, filled: list[str]) -> None:
    from omegaconf import OmegaConf, open_dict

    with open_dict(config):
        OmegaConf.update(config, name, value, force_add=True)
    filled.append(f"{name}={_hydra(value) if isinstance(value, dict) else value}")


__all__: Sequence[str] = (
    "ALGORITHMS", "config_lines", "drafts_with_rolltree", "fill_in", "replicas", "runs_ahead", "speculative_config",
)  # fmt: skip
