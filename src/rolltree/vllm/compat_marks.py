"""Where vLLM sees what a trainer says of requests and weights without knowing of rolltree.

| What | Why |
|---|---|
| `InputProcessor.process_inputs` | a request's `session_id` (`X-Session-ID`) and `cache_salt` never reach a worker |
| `EngineCore.reset_prefix_cache` | trainers call it behind a weight update; so does sleep |
| `EngineCore.collective_rpc` | it carries weight updates to workers, by names of the trainers' own |

What is done with it is decided in `serving.versions` and `serving.requests`. Nothing of this ends a call of the host.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from rolltree.vllm.compat import uses_rolltree, wrap

MARKS = "_rolltree"
"""Entry of a request's `extra_args` that carries them to the worker; not an option of the user's."""
UPDATES = re.compile(r"(?!update_weights$)(update|load|reload|finish|broadcast|receive|sync)_\w*(weight|param)")
"""Methods of workers that end a weight update or are a part of one; vLLM's own `update_weights` is never the last."""
log = logging.getLogger("vllm.rolltree")


def see_marks() -> None:
    """Hand a request's conversation and salt on to the worker, in engines that draft with rolltree."""
    from vllm.v1.engine.input_processor import InputProcessor

    def make(original: Any) -> Callable[..., Any]:
        def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
            request = original(self, *args, **kwargs)
            if uses_rolltree(self.vllm_config):
                _mark(request)
            return request

        return process_inputs

    wrap(InputProcessor, "process_inputs", make, "request_id", "prompt", "params")


def _mark(request: Any) -> None:
    marks: dict[str, Any] = {}
    session, salt = getattr(request, "session_id", None), getattr(request, "cache_salt", None)
    if isinstance(session, str) and session:
        marks["session"] = session
    if isinstance(salt, str) and salt.isascii() and salt.isdecimal() and len(salt) < 10:  # else it is no version
        marks["salt"] = int(salt)
    sampling = getattr(request, "sampling_params", None)
    if marks and sampling is not None:  # vLLM's own copy of what the user gave, but for the dictionary
        sampling.extra_args = {**(sampling.extra_args or {}), MARKS: marks}


def marks_of(sampling: Any) -> dict[str, Any]:
    """Return what the front end handed on with a request: `session` (text) and `salt` (number), where there are."""
    marks = (getattr(sampling, "extra_args", None) or {}).get(MARKS)
    return marks if isinstance(marks, dict) else {}


def see_updates() -> None:
    """Tell the workers of engines that draft with rolltree when weights may have changed."""
    from vllm.v1.engine.core import EngineCore

    def resetting(original: Any) -> Callable[..., Any]:
        def reset_prefix_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
            done = original(self, *args, **kwargs)
            _tell(self)
            return done

        return reset_prefix_cache

    def calling(original: Any) -> Callable[..., Any]:
        def collective_rpc(self: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
            answers = original(self, method, *args, **kwargs)
            if UPDATES.match(method if isinstance(method, str) else getattr(method, "__name__", "")):
                _tell(self)
            return answers

        return collective_rpc

    wrap(EngineCore, "reset_prefix_cache", resetting)
    wrap(EngineCore, "collective_rpc", calling, "method")


def _tell(core: Any) -> None:
    if not uses_rolltree(core.vllm_config):
        return
    try:
        core.model_executor.collective_rpc("rolltree", args=("updated",))
    except Exception:  # the trainer's call has succeeded
        log.exception("rolltree was not told of a weight update: old text counts as much as new, until the next one.")
