"""The lines fit verl's own configuration and fill in what is not set, in every mode, with DAPO's filter intact."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

import verl
from rolltree.errors import InvalidInputError
from rolltree.verl import AgentLoopManager, VerlOptions, config_lines, doctor_lines, sampler
from rolltree.verl.client import MarkingClient
from rolltree.verl.lines import ALGORITHMS, MANAGER, SHARE, drafts_with_rolltree, fill_in, replicas

CONFIG = Path(verl.__file__).parent / "trainer" / "config"


def configured(*overrides: str) -> Any:
    """verl's configuration as its command line makes it; the shell would have taken the quotes off."""
    with initialize_config_dir(config_dir=str(CONFIG), version_base=None):
        config = compose("ppo_trainer", overrides=[line.strip("'") for line in overrides])
    OmegaConf.resolve(config)
    return config


def trainer_of(config: Any) -> Any:
    """As much of verl's trainer as makes its sampler."""
    trainer = SimpleNamespace(config=config, trainer_mode=config.trainer.v1.trainer_mode)
    trainer._add_prompts_to_generate = PPOTrainer._add_prompts_to_generate.__get__(trainer)
    trainer._resolve_filter_groups_metric = PPOTrainer._resolve_filter_groups_metric.__get__(trainer)
    trainer._build_replay_buffer = PPOTrainer._build_replay_buffer.__get__(trainer)
    return trainer


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_lines_are_verls_own(algorithm: str) -> None:
    options = VerlOptions(key_column="id")
    short = configured(*config_lines(algorithm, options=options))
    fill_in(short, VerlOptions.read(short.trainer.v1.sampler.sampler_kwargs))
    long = configured(*config_lines(algorithm, explicit=True, options=options))
    for config in (short, long):
        rollout = config.actor_rollout_ref.rollout
        assert rollout.engine_kwargs.vllm.speculative_config.model == "rolltree.vllm.Proposer"
        assert rollout.agent.agent_loop_manager_class == MANAGER
        assert config.trainer.v1.sampler.sampler_kwargs.key_column == "id"
    assert len(config_lines(algorithm)) == 2
    assert len(config_lines(algorithm, explicit=True)) == 5
    assert long.actor_rollout_ref.rollout.engine_kwargs.vllm.additional_config.rolltree.share == "ray"


def test_what_is_set_by_hand_stays() -> None:
    mine = "+actor_rollout_ref.rollout.engine_kwargs.vllm.speculative_config={method:ngram,num_speculative_tokens:3}"
    config = configured(mine)
    assert fill_in(config, VerlOptions()) == []
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.speculative_config.method == "ngram"
    assert config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class") is None


def test_coupling_reaches_the_engine() -> None:
    """As one of its options, beside those that are set by hand; one that is stays. JSON text must say it itself."""
    name = "actor_rollout_ref.rollout.engine_kwargs.vllm.additional_config"
    options = VerlOptions(coupled=True, share=False)
    short = configured(f"+{name}.rolltree.window=8", *config_lines(options=options))
    fill_in(short, VerlOptions.read(short.trainer.v1.sampler.sampler_kwargs))
    long = configured(f"+{name}.rolltree.window=8", *config_lines(explicit=True, options=options))
    for config in (short, long):
        engine = config.actor_rollout_ref.rollout.engine_kwargs.vllm.additional_config
        assert engine == {"rolltree": {"window": 8, "coupled": True}}
    plain, own = configured(*config_lines()), configured(f"+{name}.rolltree.coupled=False")
    fill_in(plain, VerlOptions(share=False))
    fill_in(own, options)
    assert OmegaConf.select(plain, name) is None
    undrafted = configured("trainer.n_gpus_per_node=1")
    fill_in(undrafted, VerlOptions(coupled=True, speculate=False))  # the same noise, to compare with
    assert drafts_with_rolltree(undrafted)
    assert OmegaConf.select(undrafted, name) == {"rolltree": {"coupled": True}}
    assert OmegaConf.select(own, f"{name}.rolltree.coupled") is False
    text = configured()
    with open_dict(text):
        OmegaConf.update(text, name, '{"rolltree": {}}', force_add=True)
    with pytest.raises(InvalidInputError, match="coupled"):
        fill_in(text, options)


def test_json_text_is_read_as_vllm_reads_it() -> None:
    name = "+actor_rollout_ref.rollout.engine_kwargs.vllm.speculative_config"
    ours = configured("trainer.n_gpus_per_node=1")
    text = '{"method": "custom_class", "model": "rolltree.vllm.Proposer", "num_speculative_tokens": 4}'
    with open_dict(ours):
        OmegaConf.update(ours, name.lstrip("+"), text, force_add=True)
    fill_in(ours, VerlOptions())
    assert ours.actor_rollout_ref.rollout.agent.agent_loop_manager_class == MANAGER
    for other in ("ngram", "{'method'", "[1]"):
        config = configured("trainer.n_gpus_per_node=1")
        with open_dict(config):
            OmegaConf.update(config, name.lstrip("+"), other, force_add=True)
        assert fill_in(config, VerlOptions()) == []
        assert not drafts_with_rolltree(config)


def test_heads_of_the_model_that_draft_are_left_to_it(caplog: pytest.LogCaptureFixture) -> None:
    """verl makes vLLM's `speculative_config` of them; ours would have taken their place without a word."""
    mtp = "actor_rollout_ref.model.mtp"
    config = configured(f"{mtp}.enable=True", f"{mtp}.enable_rollout=True", *config_lines())
    trainer_of(config)._build_replay_buffer()
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.get("speculative_config") is None
    assert "rolltree drafts nothing" in caplog.text


def test_servers_on_devices_of_their_own_are_counted() -> None:
    name = "actor_rollout_ref.rollout"
    own = configured("trainer.n_gpus_per_node=1", f"{name}.n_gpus_per_node=4", f"{name}.nnodes=2")
    with open_dict(own):
        OmegaConf.update(own, f"{name}.tensor_model_parallel_size", 2)
    assert replicas(own) == 4


@pytest.mark.parametrize("value", ["two", -1, 1.5, "nan", [2]])
def test_numbers_of_verl_that_are_none_are_named(value: Any) -> None:
    config = configured()
    OmegaConf.update(config, "trainer.nnodes", value)
    with pytest.raises(InvalidInputError, match=r"^trainer\.nnodes = "):
        replicas(config)


@pytest.mark.parametrize(
    ("options", "routed"), [({}, False), ({"run_ahead": True}, True), ({"route": True}, True)], ids=str
)
def test_several_replicas_share_and_a_router_comes_where_it_is_needed(options: dict[str, Any], routed: bool) -> None:
    for gpus, count in ((1, 1), (2, 2)):
        config = configured(f"trainer.n_gpus_per_node={gpus}", "actor_rollout_ref.rollout.tensor_model_parallel_size=1")
        assert replicas(config) == count
        fill_in(config, VerlOptions(**options))
        assert (OmegaConf.select(config, SHARE) == "ray") == (count > 1)
        assert (config.actor_rollout_ref.rollout.router_config_path is not None) == (routed and count > 1)


@pytest.mark.parametrize("given", ["{rolltree:{share:'ray:mine',window:8}}", "{rolltree:{share:''}}", "text"])
def test_sharing_that_is_set_by_hand_stays(given: str) -> None:
    config = configured(f"+actor_rollout_ref.rollout.engine_kwargs.vllm.additional_config={given}")
    before = OmegaConf.to_container(config.actor_rollout_ref.rollout.engine_kwargs.vllm)
    assert not any("share" in line for line in fill_in(config, VerlOptions()))
    assert (
        before["additional_config"]
        == OmegaConf.to_container(config)["actor_rollout_ref"]["rollout"]["engine_kwargs"]["vllm"]["additional_config"]
    )  # type: ignore[call-overload,index]


def test_without_speculation_nothing_is_filled_in() -> None:
    assert (
        fill_in(configured("actor_rollout_ref.rollout.tensor_model_parallel_size=8"), VerlOptions(speculate=False))
        == []
    )


@pytest.mark.parametrize(("gpus", "width", "count"), [(8, 2, 4), (8, 8, 1), (2, 1, 2)])
def test_the_router_comes_with_several_replicas(gpus: int, width: int, count: int) -> None:
    name = "actor_rollout_ref.rollout"
    config = configured(f"trainer.n_gpus_per_node={gpus}", f"{name}.tensor_model_parallel_size={width}")
    assert replicas(config) == count
    fill_in(config, VerlOptions(share=False))
    assert OmegaConf.select(config, SHARE) is None
    path = config.actor_rollout_ref.rollout.router_config_path
    assert (path is not None) == (count > 1)
    if path is not None:
        from verl.workers.rollout.router import _load_router_yaml, _resolve_router_class

        router = _resolve_router_class(_load_router_yaml(path)["router_class"])(
            {"a": "handle"}, _load_router_yaml(path)
        )
        assert router.acquire_server("r", {}, [1]) == ("a", "handle")


@pytest.mark.parametrize(("mode", "kind"), [("sync", ReplayBuffer), ("colocate_async", ReplayBufferAsync)])
def test_the_sampler_is_verls_own_for_the_mode_with_dapos_arguments(mode: str, kind: type) -> None:
    dapo = ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=acc"]
    dapo += ["algorithm.filter_groups.max_inflight_gen_batches=3", "data.train_batch_size=24"]
    plain = trainer_of(configured(*dapo, f"trainer.v1.trainer_mode={mode}"))
    expected = plain._build_replay_buffer()
    trainer = trainer_of(configured(*dapo, f"trainer.v1.trainer_mode={mode}", *config_lines("dapo")))
    made = trainer._build_replay_buffer()
    assert type(made._wrapped) is type(expected) is kind
    for name in (
        "filter_groups_metric",
        "train_batch_size",
        "gen_batch_size",
        "max_inflight_gen_batches",
        "poll_interval",
    ):
        assert getattr(made, name) == getattr(expected, name), name
    assert made.filter_groups_metric == "acc"
    assert trainer.config.trainer.v1.sampler.custom_sampler.name == "sampler", "the configuration was not restored"
    assert made.refill_fn.__self__ is trainer


def test_the_store_goes_to_the_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an absolute path, because workers run elsewhere; what is set by hand for vLLM stays."""
    monkeypatch.chdir(tmp_path)
    given = "+actor_rollout_ref.rollout.engine_kwargs.vllm.additional_config"
    config = configured(f"{given}.rolltree.store_window=3", f"{given}.other=1")
    fill_in(config, VerlOptions(store="rollouts.db", store_window=9, store_bytes=2**30, share=False))
    made = config.actor_rollout_ref.rollout.engine_kwargs.vllm.additional_config
    assert made == {
        "rolltree": {"store": str(tmp_path / "rollouts.db"), "store_window": 3, "store_bytes": 2**30}, "other": 1
    }  # fmt: skip
    text = configured()
    with open_dict(text):
        OmegaConf.update(text, given.removeprefix("+"), "{}", force_add=True)
    with pytest.raises(InvalidInputError, match="a mapping, not JSON text"):
        fill_in(text, VerlOptions(store="rollouts.db"))


def test_options_reach_the_sampler() -> None:
    trainer = trainer_of(configured())
    made = sampler(refill_fn=trainer._add_prompts_to_generate, sampler_kwargs={"poll_seconds": 0.25})
    assert made.poll_interval == 0.25


def test_doctor_finds_the_tested_set() -> None:
    assert {line.name: (line.state, line.found) for line in doctor_lines() if line.state != "ok"} == {}


EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "verl").glob("*.sh"))


@pytest.mark.parametrize("script", [path for path in EXAMPLES if path.name != "common.sh"], ids=lambda path: path.stem)
def test_examples_fit_verls_configuration(script: Path, tmp_path: Path) -> None:
    """Each script's overrides, as the shell hands them over, make a configuration with rolltree in it."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": "/home/me"}
    printed = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True).stdout
    module, *overrides = printed.splitlines()[1:]
    assert module == "verl.trainer.main_ppo"
    config = configured(*overrides)
    assert config.trainer.v1.sampler.custom_sampler.path == "pkg://rolltree.verl"
    trainer = trainer_of(config)
    trainer._build_replay_buffer()
    assert config.actor_rollout_ref.rollout.agent.agent_loop_manager_class == MANAGER


def test_only_the_policys_requests_are_marked() -> None:
    """Clients of teachers and reward models are handed on as they are."""
    client, teacher, rewards = object(), object(), [object()]
    manager = AgentLoopManager(configured("actor_rollout_ref.rollout.name=vllm"), client, teacher, rewards)
    assert isinstance(manager.llm_client, MarkingClient)
    assert manager.llm_client._draft
    assert manager.llm_client._client is client
    assert manager.teacher_client is teacher
    assert manager.reward_loop_worker_handles is rewards


def test_without_drafts_the_manager_says_so_in_each_request() -> None:
    lines = config_lines(options=VerlOptions(coupled=True, speculate=False))
    manager = AgentLoopManager(configured("actor_rollout_ref.rollout.name=vllm", *lines), object())
    assert not manager.llm_client._draft


def test_other_engines_are_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match=r"rollout\.name = 'sglang'"):
        AgentLoopManager(configured("actor_rollout_ref.rollout.name=sglang"), object())
