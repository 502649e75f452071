"""What a user may set for an engine: frozen, checked, unknown names refused by name (a request: `request_options`).

The fields below are the one description: hosts hand over a dictionary of them, and each has an environment variable,
ROLLTREE_<FIELD>. ROLLTREE_VLLM_<FIELD>, the name of 0.1, is still read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import util
from typing import Any, TypeVar

from rolltree.budget import CostModel
from rolltree.config import CacheConfig, DraftConfig
from rolltree.errors import InvalidInputError, StoreError
from rolltree.recent import MANY
from rolltree.serving.lengths import WAYS
from rolltree.serving.request_options import refuse_unknown, unknown
from rolltree.serving.switch import NAMES, PREFIX, meant

OLD_PREFIX = "ROLLTREE_VLLM_"
SHARE = re.compile(r"(ray(:[\w.-]+)?)?")

LEAST_BYTES = 2**20
"""Of a store's file: an empty one has a twentieth of that."""
REBUILD = ("background", "blocking", "never")
WAIT = ("auto", "host", "stream")
GRAPHS = ("auto", "keep")

T = TypeVar("T")
_CACHE, _DRAFT = CacheConfig(), DraftConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options of an engine, by a host's dictionary, which overrides the environment."""

    capacity_bytes: int = _CACHE.capacity_bytes
    """Bytes of all trees; least recently used prompts are evicted above it."""
    window: int = _CACHE.window
    """Finished rollouts kept for each prompt."""
    shared_window: int = _CACHE.shared_window
    """Finished rollouts of any prompt in the tree that all prompts share; 0 leaves it out."""
    shared_fraction: float = _CACHE.shared_fraction
    """Part of `capacity_bytes` for the tree that all prompts share."""
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
    lengths: str = "auto"
    """Draft lengths of a step: `ragged`, each request its own; `uniform`, one for all, of those that the engine has
    full CUDA graphs for, so that shorter drafts are filled up; `auto`, whichever brings more tokens a second."""
    sessions: int = MANY
    """Conversations whose first prompt is remembered, so that later turns find its tree."""
    logits_bytes: int = 0
    """Bytes that the logits of one step may take with all their copies, which bounds the drafts of a step; 0: what
    the engine sets aside itself, or half of the memory that is free then, whichever is more."""
    coupled: bool = False
    """Draw every token by the noise of its request's seed and position, and accept a draft iff it is that token: the
    same seed gives the same rollout with drafts, without, and with any cache. For engines whose sampler can do that."""
    replica: int = -1
    """Number of this engine among those of one seed, which goes into the seeds of `coupled`; -1: not known."""
    wait: str = "auto"
    """Where drafting waits for a step's tokens: `host`, in the engine's own thread; `stream`, in the device's stream,
    which calls the core itself while the engine runs ahead; `auto`, in the stream of engines that can do that."""
    graphs: str = "auto"
    """CUDA graphs of the engine: `auto`, for all drafts of all requests (sizes that are set by hand stay), and of any
    lengths where its attention can; `keep`, as they are."""
    infer: bool = True
    """Take versions from weight updates and salts, and conversations from the engine's own ids, where none is named."""
    metrics: bool = True
    """Show rolltree's counters beside the engine's."""
    load: str = ""
    """Rollouts to start from: a store, or recorded rollouts as JSON lines."""
    share: str = ""
    """Where engines of one policy see each other's rollouts: `ray`, or `ray:NAME` for one of several exchanges of a Ray
    cluster; empty: nowhere."""
    share_seconds: float = 0.5
    """Time between two exchanges of news, at least."""
    share_bytes: int = 4 << 20
    """Bytes a second to and from the exchange, in the mean."""
    store: str = ""
    """File in which every finished rollout is kept, and from which the trees of prompts come back; processes of one
    machine may name the same."""
    store_bytes: int = 0
    """Size of that file beyond which the oldest rollouts are forgotten; 0: any."""
    store_window: int = 0
    """Latest rollouts of each prompt that are kept in that file; 0: all."""
    store_rebuild: str = "background"
    """When trees come back: `background`, while their requests run already; `blocking`, before, so that drafts do not
    depend on time; `never`."""

    def __post_init__(self) -> None:
        _config(CacheConfig, self)
        _config(DraftConfig, self)
        _check("lengths", self.lengths, self.lengths in WAYS, f"one of {', '.join(WAYS)}")
        _check("logits_bytes", self.logits_bytes, 0 <= self.logits_bytes < 2**63, "a number of bytes, 0 or more")
        _check("replica", self.replica, -1 <= self.replica < 2**31, "a whole number from 0 to 2147483647, or -1")
        _check("share", self.share, SHARE.fullmatch(self.share) is not None, "ray, ray:NAME, or empty")
        _check("share_seconds", self.share_seconds, 0.001 <= self.share_seconds <= 3600, "a number from 0.001 to 3600")
        _check("share_bytes", self.share_bytes, 1 <= self.share_bytes < 2**63, "a number of bytes, 1 or more")
        is_good = self.store_bytes == 0 or LEAST_BYTES <= self.store_bytes < 2**63
        _check("store_bytes", self.store_bytes, is_good, f"0, or {LEAST_BYTES} and more")
        _check("store_window", self.store_window, 0 <= self.store_window < 2**31, "a number of rollouts, 0 or more")
        _check("store_rebuild", self.store_rebuild, self.store_rebuild in REBUILD, f"one of {', '.join(REBUILD)}")
        _check("wait", self.wait, self.wait in WAIT, f"one of {', '.join(WAIT)}")
        _check("graphs", self.graphs, self.graphs in GRAPHS, f"one of {', '.join(GRAPHS)}")
        _check("sessions", self.sessions, 0 <= self.sessions <= 2**31, "a number from 0 to 2147483648")

    @classmethod
    def read(cls, given: object, environment: Mapping[str, str], *, where: str) -> EngineOptions:
        """Read a host's dictionary and the environment.

        Args:
            given: the options by name; None: none.
            environment: variables; those of others are left alone.
            where: what the user calls `given`, for errors.

        Raises:
            InvalidInputError: an unknown name, or a value outside what is allowed.

        """
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise InvalidInputError(where, given, "a dictionary")
        types = {field.name: type(field.default) for field in fields(cls)}
        refuse_unknown(where, given, types)
        values = _from_environment(environment, types)
        for name, value in given.items():
            values[name] = _typed(f"{where}.{name}", value, types[name])
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
        return None if self.cost in ("observed", "off") else CostModel.load(self.cost)

    def check_files(self, where: str) -> None:
        """Look whether the files of `cost` and `load`, and what `share` needs, are there, and where `store` is to be.

        Errors name them as options of `where`.

        Raises:
            InvalidInputError: one is not, `cost` is no cost model, or `store` cannot be a store's file.

        """
        if self.share and util.find_spec("ray") is None:
            raise InvalidInputError(f"{where}.share", self.share, "empty where Ray is not installed", "Install ray.")
        try:
            self.frozen_cost()
        except InvalidInputError as error:
            allowed = "'observed', 'off' or a file written by CostModel.save"
            raise InvalidInputError(f"{where}.cost", self.cost, allowed, error.fix) from None
        if self.load:
            from rolltree.serving.load import existing

            existing(self.load)
        if self.store:
            from rolltree.store.location import as_path, look_at

            try:
                look_at(as_path(self.store))
            except InvalidInputError as error:
                raise InvalidInputError(f"{where}.store", self.store, error.allowed, error.fix) from None
            except StoreError:  # the engine says so, and goes on without
                pass


def _config(kind: Callable[..., T], options: EngineOptions) -> T:
    names = {field.name for field in fields(kind)} & {field.name for field in fields(EngineOptions)}  # type: ignore[arg-type]
    return kind(**{name: getattr(options, name) for name in names})


def _check(name: str, value: object, is_good: bool, allowed: str) -> None:
    if not is_good:
        raise InvalidInputError(name, value, allowed)


def _from_environment(environment: Mapping[str, str], types: Mapping[str, type]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    ours = [(name, OLD_PREFIX) for name in environment if name.startswith(OLD_PREFIX)]
    ours += [(name, PREFIX) for name in environment if name.startswith(PREFIX) and not name.startswith(OLD_PREFIX)]
    for name, prefix in ours:
        known = {f"{prefix}{field.upper()}": field for field in types}
        if name in known:
            values[known[name]] = _parsed(name, environment[name], types[known[name]])
        elif prefix == OLD_PREFIX or (name not in NAMES and meant(name, (*known, *NAMES))):
            raise unknown("environment", name, environment[name], [*known, *NAMES])
    return values


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
