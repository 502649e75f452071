"""What each request to vLLM says to rolltree: key of its prompt, conversation, kind, version of the policy.

Pure: knows neither verl nor vLLM. The agent loop worker marks the context in which an agent loop runs, the client reads
the mark when the agent loop generates. Keys are made here, on the client's side, because vLLM sees a later turn, or a
request that goes on after an abort, as a new prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rolltree.serving.conversations import Conversations
from rolltree.tokens import as_integer, prompt_key

REQUEST_KEY = "rolltree"
"""The entry of a request's `extra_args` that `rolltree.vllm` reads."""
MAX_VERSION = 2**31 - 1
"""Of the policy, as a request can say it."""
LONGEST_NAME = 200
"""Characters of a prompt's name in a key."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of an agent loop before it generates."""

    validation: bool = False
    version: int | None = None
    """Of the policy: verl's global step."""
    key: str | None = None
    """The user's name of the prompt; None takes the first turn's token ids."""


CURRENT: ContextVar[Mark] = ContextVar("rolltree_mark", default=Mark())  # noqa: B039 (frozen)
"""The mark of the running agent loop. Tasks that the loop starts inherit it."""


def policy_version(step: object) -> int | None:
    """Return the version of the policy by a trainer's step, whatever kind of number that is; None before the first.

    Raises:
        InvalidInputError: no whole number, or more than a request can say.
    """
    number = as_integer(step, "global_steps", high=MAX_VERSION)
    return number if number >= 0 else None


def named_key(value: object) -> str | None:
    """Return the key of a prompt from its name in the data set; None for a name that is none (missing, NaN).

    Long names are hashed; what no encoding can carry is escaped.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return f"column:{text}" if len(text) <= LONGEST_NAME else f"column:#{prompt_key(list(text.encode()))}"


def marked(
    sampling_params: Mapping[str, Any], mark: Mark, *, session: str, prompt: Sequence[int],
    conversations: Conversations, draft: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Return a copy of `sampling_params` with the request's options in its `extra_args`; what is set there stays."""
    extra = dict(sampling_params.get("extra_args") or {})
    options: dict[str, Any] = {"key": mark.key or conversations.remember(session, prompt), "session": session}
    if mark.version is not None:
        options["version"] = mark.version
    if mark.validation:
        options["kind"] = "validation"
    if not draft:
        options["draft"] = False
    options = {name: value for name, value in options.items() if f"{REQUEST_KEY}_{name}" not in extra}  # flat names
    extra[REQUEST_KEY] = {**options, **(extra.get(REQUEST_KEY) or {})}
    return {**sampling_params, "extra_args": extra}
