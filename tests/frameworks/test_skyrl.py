"""SkyRL: the functions that build the arguments of its vLLM servers and the sampling parameters of its requests."""

from __future__ import annotations

import sys
import typing
from typing import Any

import pytest
import transformers.processing_utils  # noqa: F401  (its types are those of `typing`)
import typing_extensions

from tests.frameworks.tools import MODEL, WIDTH, said, width

with pytest.MonkeyPatch.context() as patch:
    if sys.version_info < (3, 12):  # SkyRL asks for 3.12, where pydantic takes the one of `typing`
        patch.setattr(typing, "TypedDict", typing_extensions.TypedDict)
    servers = pytest.importorskip("skyrl.backends.skyrl_train.inference_servers.utils", exc_type=ImportError)

OWN = "generator.inference_engine.engine_init_kwargs.speculative_config"
EVALUATION = "generator.eval_sampling_params.additional_kwargs"


def configured(*lines: str) -> Any:
    """Its configuration, with lines of the command line."""
    from skyrl.train.config import SkyRLTrainConfig

    shape = [f"trainer.policy.model.path={MODEL}", "trainer.placement.colocate_all=false"]
    return SkyRLTrainConfig.from_cli_overrides([*shape, *lines])


def engine_config(*lines: str) -> Any:
    """vLLM's configuration of a server."""
    from vllm import AsyncEngineArgs

    arguments = servers.build_vllm_cli_args(configured(*lines))
    return AsyncEngineArgs.from_cli_args(arguments).create_engine_config()


def test_its_servers_draft_by_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert width(engine_config()) == WIDTH
    monkeypatch.delenv("ROLLTREE_DRAFT")
    assert width(engine_config()) == 0


def test_its_servers_draft_by_its_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    from rolltree.cli.frameworks import FRAMEWORKS

    monkeypatch.delenv("ROLLTREE_DRAFT")
    setting, _, value = FRAMEWORKS["skyrl"].own.partition("=")
    assert setting == OWN
    assert width(engine_config(f"{setting}={value.strip(chr(39))}")) == WIDTH


def test_marks_arrive_by_its_settings() -> None:
    from skyrl.backends.skyrl_train.inference_servers.engine_utils import get_sampling_params_for_backend

    from vllm import SamplingParams

    generator = configured(f"{EVALUATION}={{extra_args: {{rolltree: {{kind: validation}}}}}}").generator
    training, evaluation = (
        SamplingParams(**get_sampling_params_for_backend("vllm", parameters))
        for parameters in (generator.sampling_params, generator.eval_sampling_params)
    )
    assert said(training).kind != "validation"
    assert said(evaluation).kind == "validation"
    assert training.min_p == 0.0


def test_its_salt_is_no_number() -> None:
    """So the version is counted from its weight updates, not read from the salt (docs/frameworks.md)."""
    from skyrl.train.generators.utils import build_vllm_cache_salt

    salt = build_vllm_cache_salt(3, servers.resolve_policy_model_name(configured()))
    assert salt.endswith(":3")
