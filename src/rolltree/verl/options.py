"""What a user may set for rolltree in verl, under `trainer.v1.sampler.sampler_kwargs`. Imports no verl."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.runahead import RunAheadConfig
from rolltree.vllm.limits import check_width

WHERE = "trainer.v1.sampler.sampler_kwargs"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerlOptions:
    """Options of the verl adapter; each is one more line `+trainer.v1.sampler.sampler_kwargs.NAME=VALUE`."""

    key_column: str | None = None
    """Column of the data set that names a prompt. None: the token ids of the first turn's prompt."""
    max_draft: int = 16
    """Draft tokens of a request and step at most, where `speculative_config` is not set by hand."""
    speculate: bool = True
    """False leaves vLLM without drafts, to measure against: keys and metrics stay."""
    route: bool = True
    """Keep a prompt on one replica, where there are several and no router is set by hand."""
    rpc_seconds: float = 10.0
    """A call to a vLLM server that takes longer is given up; the step goes on without its numbers."""
    poll_seconds: float | None = None
    """How often verl looks whether the rollouts are done; None keeps verl's 2 seconds."""
    run_log: str | None = None
    """Folder that also gets the numbers of each step, for `rolltree report FOLDER`."""

    run_ahead: bool | Mapping[str, Any] = False
    """Generate ahead in the tails of batches; a mapping sets fields of `RunAheadConfig`. Synchronous trainers only."""

    def __post_init__(self) -> None:
        _check("key_column", self.key_column, self.key_column is None or bool(self.key_column), "a column's name")
        check_width(f"{WHERE}.max_draft", self.max_draft)
        _check("rpc_seconds", self.rpc_seconds, 0 < self.rpc_seconds <= 3600, "a number above 0, at most 3600")
        poll = self.poll_seconds
        _check("poll_seconds", poll, poll is None or 0.001 <= poll <= 60, "a number from 0.001 to 60")

        _check("run_ahead", self.run_ahead, isinstance(self.run_ahead, bool | Mapping), "true, false or a mapping")
        _ = self.run_ahead_config

    @property
    def run_ahead_config(self) -> RunAheadConfig | None:
        """Settings of run-ahead, None where it is off.

        Raises:
            InvalidInputError: an unknown setting, or a value outside what is allowed.
        """
        if isinstance(self.run_ahead, bool):
            return RunAheadConfig() if self.run_ahead else None
        known = [field.name for field in fields(RunAheadConfig)]
        for name, value in self.run_ahead.items():
            if name not in known:
                raise InvalidInputError(f"{WHERE}.run_ahead.{name}", value, f"one of {', '.join(known)}")
        return RunAheadConfig(**{str(name): value for name, value in self.run_ahead.items()})

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> VerlOptions:
        """Read the mapping that verl calls `sampler_kwargs`.

        Raises:
            InvalidInputError: an unknown name, or a value outside what is allowed.
        """
        known = [field.name for field in fields(cls)]
        for name in given or {}:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                fix = f"Did you mean {near[0]!r}?" if near else ""
                raise InvalidInputError(f"{WHERE}.{name}", (given or {})[name], f"one of {', '.join(known)}", fix)
        return cls(**{str(name): value for name, value in (given or {}).items()})

    @classmethod
    def of(cls, config: Any) -> VerlOptions:
        """Read verl's whole configuration. Beside a sampler that is not rolltree's, other names are left alone.

        Raises:
            InvalidInputError: a value outside what is allowed, or with rolltree's sampler an unknown name.
        """
        sampler = config.trainer.v1.sampler
        given = dict(sampler.get("sampler_kwargs") or {})
        if "rolltree" not in str((sampler.get("custom_sampler") or {}).get("path")):
            known = {field.name for field in fields(cls)}
            given = {name: value for name, value in given.items() if name in known}
        return cls.read(given)


def _check(name: str, value: object, is_good: bool, allowed: str) -> None:
    if not is_good:
        raise InvalidInputError(f"{WHERE}.{name}", value, allowed)
