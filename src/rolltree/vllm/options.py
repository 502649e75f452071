"""What a user may set, for the engine and for one request: frozen, checked, unknown names refused by name.

Reads dictionaries and environment variables; knows nothing of vLLM.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from rolltree.budget import CostModel
from rolltree.config import CacheConfig, DraftConfig
from rolltree.errors import InvalidInputError

ENVIRONMENT_PREFIX = "ROLLTREE_VLLM_"
REQUEST_KEY = "rolltree"
"""Where a request carries its options: `SamplingParams(extra_args={"rolltree": {...}})`."""
KINDS = ("rollout", "validation", "run-ahead")

T = TypeVar("T")
_CACHE, _DRAFT = CacheConfig(), DraftConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """`additional_config={"rolltree": {...}}`, which overrides the environment: ROLLTREE_VLLM_<FIELD>."""

    capacity_bytes: int = _CACHE.capacity_bytes
    """Bytes of all trees; least recently used prompts are evicted above it."""
    window: int = _CACHE.window
    """Finished rollouts kept for each prompt."""
    shared_window: int = _CACHE.shared_window
    """Finished rollouts of any prompt in the tree that all prompts share; 0 leaves it out."""
    depth: int = _CACHE.depth
    """Longest indexed substring, tokens."""
    decay: float = _CACHE.decay
    """Weight of a rollout relative to one of the next policy version."""
    context_weight: float = _CACHE.context_weight
    """Weight of prompt and tool text relative to a fresh rollout."""
    min_survival: float = _DRAFT.min_survival
    """Tokens less likely than this to be reached and accepted are not drafted."""
    min_match: int = _DRAFT.min_match
    """Shortest matched context to predict from, tokens."""
    cost: str = "observed"
    """Step-cost model behind the budget: `observed` learns it from this engine's steps, `off` verifies every draft, a
    path is a file written by `CostModel.save` (frozen: drafts do not depend on time)."""
    sessions: int = 4096
    """Conversations whose first prompt is remembered, so that later turns find its tree."""
    metrics: bool = True
    """Show rolltree's counters beside vLLM's."""
    load: str = ""
    """Rollouts to start from: a store, or recorded rollouts as JSON lines."""

    def __post_init__(self) -> None:
        _config(CacheConfig, self)
        _config(DraftConfig, self)
        _check("sessions", self.sessions, 0 <= self.sessions <= 2**31, "a number from 0 to 2147483648")

    @classmethod
    def read(cls, additional: object, environment: Mapping[str, str]) -> EngineOptions:
        """Read vLLM's `additional_config` and the environment.

        Raises:
            InvalidInputError: an unknown name, or a value outside what is allowed.

        """
        given = additional.get(REQUEST_KEY, {}) if isinstance(additional, Mapping) else {}
        if not isinstance(given, Mapping):
            raise InvalidInputError("additional_config.rolltree", given, "a dictionary")
        types = {field.name: type(field.default) for field in fields(cls)}
        _refuse_unknown("additional_config.rolltree", given, types)
        values = _from_environment(environment, types)
        for name, value in given.items():
            values[name] = _typed(f"additional_config.rolltree.{name}", value, types[name])
        return cls(**values)

    @property
    def cache(self) -> CacheConfig:
        """Settings of the trees."""
        return _config(CacheConfig, self)

    def draft(self, max_draft: int) -> DraftConfig:
        """Settings of drafting, chains of at most `max_draft` tokens."""
        return DraftConfig(max_draft=max_draft, min_survival=self.min_survival, min_match=self.min_match)

    def frozen_cost(self) -> CostModel | None:
        """Return the model of `cost` when it names a file, None otherwise."""
        if self.cost in ("observed", "off"):
            return None
        try:
            return CostModel.load(self.cost)
        except OSError as error:
            allowed = "'observed', 'off' or a file written by CostModel.save"
            raise InvalidInputError("additional_config.rolltree.cost", self.cost, allowed, str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """`SamplingParams(extra_args={"rolltree": {...}})`."""

    key: str | None = None
    """The user's id of the prompt or conversation; requests with the same key share a tree. None: the prompt."""
    session: str | None = None
    """Id of a conversation: later turns, whose prompts extend the first one, use the tree of the first prompt."""
    version: int | None = None
    """Version of the policy that generates; a higher one than before announces an update."""
    kind: str = "rollout"
    """`rollout`, `validation` or `run-ahead`: counted apart. Text of validations is drafted for, not remembered."""
    draft: bool = True
    """False: this request is not drafted for."""
    remember: bool | None = None
    """Whether its text enters the tree. None: unless it is a validation."""

    def __post_init__(self) -> None:
        where = f"extra_args.{REQUEST_KEY}"
        for name in ("key", "session"):
            value = getattr(self, name)
            _check(
                f"{where}.{name}", value, value is None or (isinstance(value, str) and value != ""), "a non-empty text"
            )
        version = self.version
        is_version = version is None or (type(version) is int and 0 <= version < 2**31)
        _check(f"{where}.version", version, is_version, "a whole number from 0 to 2147483647")
        _check(f"{where}.kind", self.kind, self.kind in KINDS, f"one of {', '.join(KINDS)}")
        _check(f"{where}.draft", self.draft, isinstance(self.draft, bool), "true or false")
        _check(f"{where}.remember", self.remember, self.remember in (None, True, False), "true or false")

    @classmethod
    def read(cls, extra_args: Mapping[str, Any] | None) -> RequestOptions:
        """Read a request's `extra_args`, which may hold keys of others.

        Raises:
            InvalidInputError: an unknown name, or a value outside what is allowed.

        """
        given = (extra_args or {}).get(REQUEST_KEY)
        if given is None:
            return DEFAULT
        if not isinstance(given, Mapping):
            raise InvalidInputError(f"extra_args.{REQUEST_KEY}", given, "a dictionary")
        _refuse_unknown(f"extra_args.{REQUEST_KEY}", given, {field.name: field.type for field in fields(cls)})
        return cls(**given)

    @property
    def remembered(self) -> bool:
        """Whether the text of this request enters the tree."""
        return self.kind != "validation" if self.remember is None else self.remember


def _config(kind: Callable[..., T], options: EngineOptions) -> T:
    names = {field.name for field in fields(kind)} & {field.name for field in fields(EngineOptions)}  # type: ignore[arg-type]
    return kind(**{name: getattr(options, name) for name in names})


def _check(name: str, value: object, is_good: bool, allowed: str) -> None:
    if not is_good:
        raise InvalidInputError(name, value, allowed)


def _refuse_unknown(where: str, given: Mapping[str, Any], known: Mapping[str, object]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            fix = f"Did you mean {near[0]!r}?" if near else ""
            raise InvalidInputError(f"{where}.{name}", given[name], f"left out: known are {', '.join(known)}", fix)


def _from_environment(environment: Mapping[str, str], types: Mapping[str, type]) -> dict[str, Any]:
    mine = {name: value for name, value in environment.items() if name.startswith(ENVIRONMENT_PREFIX)}
    known = {f"{ENVIRONMENT_PREFIX}{name.upper()}": name for name in types}
    _refuse_unknown("environment", mine, known)
    return {known[name]: _parsed(name, text, types[known[name]]) for name, text in mine.items()}


def _parsed(name: str, text: str, wanted: type) -> object:
    if wanted is str:
        return text
    try:
        return _typed(name, json.loads(text.lower()), wanted)
    except json.JSONDecodeError:
        return _typed(name, text, wanted)


def _typed(name: str, value: object, wanted: type) -> object:
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        allowed = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[wanted]
        raise InvalidInputError(name, value, allowed)
    return value


DEFAULT = RequestOptions()
