"""Where vLLM's arguments are reached into: the switch `ROLLTREE_DRAFT` (see `serving.switch`) turns drafts on there.

`EngineArgs.create_engine_config` is wrapped. Where the switch is on and the arguments name no speculation, the
configuration is made with rolltree's; where vLLM refuses that, or rolltree cannot draft there, it is made as the
arguments say, and one line of the log says why. So a variable of the environment ends no engine, unless its own value
is wrong. The configuration carries where its drafts come from to every process of the engine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rolltree.errors import InvalidInputError
from rolltree.vllm.compat import PROPOSER, HookMissing, uses_rolltree, wrap
from rolltree.vllm.compat_v2 import METHOD
from rolltree.vllm.plugin import ORIGIN

if TYPE_CHECKING:
    from rolltree.serving.switch import Switch

LOGITS_PROCESSORS = "vllm.logits_processors"
"""Entry points of what changes logits: vLLM leaves them out beside any speculation, with no word."""
SHOWN = 400
"""Characters of vLLM's reason in the line of the log."""
log = logging.getLogger("vllm.rolltree")


def add_switch() -> None:
    """Let the environment turn drafts on where an engine's arguments name no speculation."""
    from vllm.engine.arg_utils import EngineArgs

    if not hasattr(EngineArgs, "create_speculative_config"):
        raise HookMissing("EngineArgs has no create_speculative_config")

    def make(original: Any) -> Callable[..., Any]:
        def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
            def plain() -> Any:
                return original(self, *args, **kwargs)

            switch = _switch() if self.speculative_config is None else None
            return plain() if switch is None else _Attempt(self, switch, plain).config()

        return create_engine_config

    wrap(EngineArgs, "create_engine_config", make)


def origin(vllm_config: Any) -> str:
    """Return what of the environment turned drafts on in this engine; empty where its arguments did."""
    return str(getattr(vllm_config.speculative_config, ORIGIN, ""))


def _switch() -> Switch | None:
    if not any(name.startswith("ROLLTREE_") for name in os.environ):
        return None
    from rolltree.serving.switch import Switch
    from rolltree.vllm.width import MAX_DRAFT

    return Switch.read(os.environ, largest=MAX_DRAFT)


class _Attempt:
    """One call of `create_engine_config`, with drafts where nothing speaks against them.

    Args:
        args: vLLM's `EngineArgs`; it keeps what the same call keeps there without rolltree, and nothing else.
        switch: what the environment asks for.
        plain: the call as vLLM has it.

    """

    def __init__(self, args: Any, switch: Switch, plain: Callable[[], Any]) -> None:
        self._args, self._switch, self._plain = args, switch, plain
        self._before = dict(vars(args))

    def config(self) -> Any:
        """Return the engine's configuration.

        Raises:
            InvalidInputError: an option of rolltree is wrong.

        """
        try:
            config = self._drafting()
        except Exception as error:  # vLLM's refusals are of many kinds
            return self._without(error)
        if not uses_rolltree(config):
            return config
        from rolltree.vllm import checks

        setattr(config.speculative_config, ORIGIN, str(self._switch))
        options = checks.read_options(config)
        try:
            checks.check_fit(config, options)
        except InvalidInputError as error:
            return self._without(error)
        return config

    def _drafting(self) -> Any:
        """Make it with as many drafts as vLLM allows; raise what vLLM does."""
        from rolltree.vllm import checks  # noqa: F401  (so that an installation that is broken shows here)

        try:
            return self._with(self._switch.width)
        except Exception:
            width = self._width_with_lora()
            if not 1 <= width < self._switch.width:
                raise
        self._restore()
        log.warning(
            "rolltree: %s is lowered to %d: with LoRA, vLLM wants max_num_batched_tokens >= max_num_seqs x "
            "(draft tokens + 1).", self._switch, width,
        )  # fmt: skip
        return self._with(width)

    def _width_with_lora(self) -> int:
        """Return the widest drafts that vLLM's rule for LoRA allows, after it has filled in what the rule reads."""
        args = self._args
        if not (args.enable_lora and args.max_num_seqs and args.max_num_batched_tokens):
            return 0
        return int(args.max_num_batched_tokens // args.max_num_seqs) - 1

    def _with(self, width: int) -> Any:
        """Make it with drafts of this width, where neither arguments nor the model's own files name another way."""
        args, original = self._args, self._args.create_speculative_config

        def create_speculative_config(*given: Any, **named: Any) -> Any:
            own = original(*given, **named)
            model_config = named["target_model_config"] if "target_model_config" in named else given[0]
            if own is not None or self._is_left_out(model_config):
                return own
            args.speculative_config = {"method": METHOD, "model": PROPOSER, "num_speculative_tokens": width}
            try:
                return original(*given, **named)
            finally:
                args.speculative_config = None

        args.create_speculative_config = create_speculative_config
        try:
            return self._plain()
        finally:
            del args.create_speculative_config

    def _is_left_out(self, model_config: Any) -> bool:
        """Return whether drafts cannot be wanted for this model, and say so."""
        served = self._before.get("served_model_name") or ()
        names = [str(self._before["model"]), *([served] if isinstance(served, str) else served)]
        if not self._switch.is_for(names):
            reason = f"its names ({', '.join(names)}) do not fit ROLLTREE_DRAFT_MODEL={self._switch.model}"
        elif getattr(model_config, "runner_type", "generate") != "generate":
            reason = "it is a pooling model, which generates nothing"
        elif getattr(model_config, "is_encoder_decoder", False):
            reason = "it is an encoder-decoder model"
        elif getattr(model_config, "logits_processors", None) or metadata.entry_points(group=LOGITS_PROCESSORS):
            reason = "vLLM runs no logits processors of others beside speculation, and there are some"
        else:
            return False
        log.info("rolltree: this engine does not draft, although %s is set: %s.", self._switch, reason)
        return True

    def _without(self, reason: Exception) -> Any:
        """Make it as the arguments say; when that fails, it is the user's own error."""
        self._restore()
        config = self._plain()
        log.warning(
            "rolltree is OFF in this engine, although %s is set: drafts do not go with its arguments (%s: %s)",
            self._switch, type(reason).__name__, " ".join(str(reason).split())[:SHOWN],
        )  # fmt: skip
        return config

    def _restore(self) -> None:
        vars(self._args).clear()
        vars(self._args).update(self._before)
