"""The `vllm.general_plugins` entry point: runs in the front end, the engine core and every worker, before models load.

Runs for everybody who has rolltree installed, so it raises nothing and loads nothing of rolltree that is heavy: what
needs numpy, the core or a model runner is imported when an engine or a request asks for it. Without one it changes
nothing but a CPU sampler that is wrong for everybody's speculation.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

ORIGIN = "rolltree_turned_on_by"
"""Attribute of vLLM's `SpeculativeConfig` where the environment turned drafts on: by what (see `compat_args`)."""


def register() -> None:
    """Install what every process needs; a second call changes nothing. Never raises: vLLM would end with it."""
    with contextlib.suppress(Exception):  # an engine that asks for rolltree meets the same fault, loudly
        from rolltree.vllm import hooks

        hooks.install(hooks.FOR_ALL)


def check_request(extra_args: Mapping[str, Any]) -> None:
    """Raise what vLLM answers with status 400 for a request whose options for rolltree are wrong."""
    if not isinstance(extra_args, Mapping) or not any(str(name).lower().startswith("rolltree") for name in extra_args):
        return
    from rolltree.errors import InvalidInputError
    from rolltree.serving.request_options import RequestOptions
    from rolltree.vllm import compat

    try:
        RequestOptions.read(extra_args, where="extra_args")
    except InvalidInputError as error:
        raise compat.refusal(error) from None


def explain(error: Exception, given: Iterable[object]) -> None:
    """Add to vLLM's refusal of a request under speculation that nobody but the environment asked for it."""
    switch = next(filter(None, (getattr(thing, ORIGIN, "") for thing in given)), "")
    if switch and error.args and "specul" in str(error).lower():
        fix = f" {switch} turned it on: unset it for engines that serve such requests."
        error.args = (f"{error.args[0]}{fix}", *error.args[1:])


def prepare_engine(vllm_config: Any) -> None:
    """In the front end, before an engine that is to draft starts: check its options, show its counters."""
    from rolltree.vllm import prometheus
    from rolltree.vllm.checks import check_engine

    if check_engine(vllm_config).metrics:
        prometheus.publish()


def refuse_v2_runner() -> None:
    """Raise the sentence that says what to set."""
    from rolltree.errors import InvalidInputError

    raise InvalidInputError(
        "VLLM_USE_V2_MODEL_RUNNER",
        os.environ.get("VLLM_USE_V2_MODEL_RUNNER"),
        "0 or unset with rolltree.vllm.Proposer and this vLLM",
        "Its V2 model runner lacks a place that drafting needs; unset the variable and vLLM uses the V1 runner.",
    )
