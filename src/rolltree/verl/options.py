"""What a user may set for rolltree in verl, under `trainer.v1.sampler.sampler_kwargs`. Imports no verl.

Every value is checked when the options are made, at both ends of its range; nothing but InvalidInputError leaves.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.runahead import RunAheadConfig
from rolltree.serving.options import EngineOptions
from rolltree.vllm.width import check_width

WHERE = "trainer.v1.sampler.sampler_kwargs"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerlOptions:
    """Options of the verl adapter; each is one more line `+trainer.v1.sampler.sampler_kwargs.NAME=VALUE`."""

    key_column: str | None = None
    """Column of the data set that names a prompt. None: the token ids of the first turn's prompt."""
    max_draft: int = 16
    """Draft tokens of a request and step at most, where `speculative_config` is not set by hand."""
    speculate: bool = True
    """False leaves vLLM without drafts, to measure against: keys and metrics stay. With `coupled` vLLM draws its tokens
    as it does with drafts, so the rollouts are the same."""
    coupled: bool = False
    """vLLM draws each token by noise of its request's seed and position (the engine option `coupled`)."""
    route: bool | None = None
    """Keep a prompt on one replica, where there are several and no router is set by hand. None: where replicas do not
    share, or run ahead."""
    share: bool = True
    """Replicas see each other's rollouts, where there are several and vLLM's option `share` is not set by hand."""
    rpc_seconds: float = 10.0
    """A call to a vLLM server that takes longer is given up; the step goes on without its numbers."""
    poll_seconds: float | None = None
    """How often verl looks whether the rollouts are done; None keeps verl's 2 seconds."""
    run_log: str | None = None
    """Folder that also gets the numbers of each step, for `rolltree report FOLDER`."""

    store: str | None = None
    """File on each node in which its replicas keep finished rollouts, and from which their trees come back."""
    store_bytes: int = 0
    """Size of that file beyond which the oldest rollouts are forgotten; 0: any."""
    store_window: int = 0
    """Latest rollouts of each prompt that are kept in that file; 0: all."""

    run_ahead: bool | Mapping[str, Any] = False
    """Generate ahead in the tails of batches; a mapping sets fields of `RunAheadConfig`. Synchronous trainers only."""

    def __post_init__(self) -> None:
        _check("key_column", self.key_column, self.key_column is None or _is_name(self.key_column), "a column's name")
        check_width(f"{WHERE}.max_draft", self.max_draft)
        for name in ("speculate", "coupled", "share"):
            _check(name, getattr(self, name), isinstance(getattr(self, name), bool), "true or false")
        _check("route", self.route, self.route is None or isinstance(self.route, bool), "true, false or null")
        rpc, poll = self.rpc_seconds, self.poll_seconds
        _check("rpc_seconds", rpc, _is_number(rpc) and 0.001 <= rpc <= 3600, "a number from 0.001 to 3600")
        good = poll is None or (_is_number(poll) and 0.001 <= poll <= 60)
        _check("poll_seconds", poll, good, "a number from 0.001 to 60, or null for verl's own")
        _check("run_log", self.run_log, self.run_log is None or _is_name(self.run_log), "a folder's name")
        _check("store", self.store, self.store is None or _is_name(self.store), "a file's name")
        try:
            EngineOptions.read(self.engine_options, {}, where=WHERE)
        except InvalidInputError as error:
            raise InvalidInputError(f"{WHERE}.{_last(error.name)}", error.value, error.allowed, error.fix) from None
        _check("run_ahead", self.run_ahead, isinstance(self.run_ahead, bool | Mapping), "true, false or a mapping")
        _ = self.run_ahead_config

    @property
    def routes(self) -> bool:
        """Whether the router is to be used where there are several replicas."""
        return not self.share or bool(self.run_ahead) if self.route is None else self.route

    @property
    def engine_options(self) -> dict[str, Any]:
        """Those that vLLM's engines get; a store's path is made absolute, because workers run elsewhere."""
        given = {name: getattr(self, name) for name in ("coupled", "store_bytes", "store_window")}
        default = VerlOptions.__dataclass_fields__
        given = {name: value for name, value in given.items() if value != default[name].default}
        return ({} if self.store is None else {"store": os.path.abspath(self.store)}) | given

    @property
    def run_ahead_config(self) -> RunAheadConfig | None:
        """Settings of run-ahead, None where it is off.

        Raises:
            InvalidInputError: an unknown setting, or a value outside what is allowed.
        """
        if isinstance(self.run_ahead, bool):
            return RunAheadConfig() if self.run_ahead else None
        where = f"{WHERE}.run_ahead"
        given = _known(where, self.run_ahead, [field.name for field in fields(RunAheadConfig)])
        try:
            return RunAheadConfig(**given)
        except InvalidInputError as error:  # named as a setting of the controller: say where it stands here
            name = f"{where}.{_last(error.name)}"
            raise InvalidInputError(name, error.value, error.allowed, error.fix) from None

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> VerlOptions:
        """Read the mapping that verl calls `sampler_kwargs`.

        Raises:
            InvalidInputError: an unknown name, or a value outside what is allowed.
        """
        return cls(**_known(WHERE, given, [field.name for field in fields(cls)]))

    @classmethod
    def of(cls, config: Any) -> VerlOptions:
        """Read verl's whole configuration. Beside a sampler that is not rolltree's, other names are left alone.

        Raises:
            InvalidInputError: a value outside what is allowed, or with rolltree's sampler an unknown name.
        """
        sampler = config.trainer.v1.sampler
        given = sampler.get("sampler_kwargs")
        if "rolltree" not in str((sampler.get("custom_sampler") or {}).get("path")):
            known = {field.name for field in fields(cls)}
            given = {name: value for name, value in _mapping(WHERE, given).items() if name in known}
        return cls.read(given)


def _known(where: str, given: object, known: list[str]) -> dict[str, Any]:
    """Return the settings by name; InvalidInputError for a name that is not known."""
    values = _mapping(where, given)
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"Did you mean {near[0]!r}?" if near else ""
            raise InvalidInputError(f"{where}.{name}", value, f"left out: known are {', '.join(known)}", fix)
    return values


def _mapping(where: str, given: object) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidInputError(where, given, "a mapping of options")
    try:
        return {str(name): given[name] for name in given}
    except Exception as error:  # OmegaConf resolves values when they are read: `???`, or a reference to nothing
        raise InvalidInputError(
            where, type(error).__name__, "a mapping whose values are all there", str(error)
        ) from None


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.strip() != "" and "\0" not in value


def _check(name: str, value: object, is_good: bool, allowed: str) -> None:
    if not is_good:
        raise InvalidInputError(f"{WHERE}.{name}", value, allowed)
