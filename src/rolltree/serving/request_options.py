"""What one request may set, under either of two spellings: nested for Python, flat for HTTP. Knows nothing of vLLM.

`SamplingParams(extra_args={"rolltree": {"key": "k"}})` holds Python values, which must have the right type. Over HTTP
only texts, numbers and lists travel, one level deep: `{"vllm_xargs": {"rolltree_key": "k"}}`, and there "true", 1 and
"3" are read as what they can only mean. Both spellings are read from the fields of `RequestOptions`.

Invariant: whatever `extra_args` holds, nothing but InvalidInputError leaves `RequestOptions.read`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rolltree.errors import InvalidInputError

REQUEST_KEY = "rolltree"
"""Where a request carries its options: `SamplingParams(extra_args={"rolltree": {...}})`."""
FLAT = f"{REQUEST_KEY}_"
"""What flat names begin with."""
KINDS = ("rollout", "validation", "run-ahead")
SHOWN = 200
"""Characters of a bad value that an error repeats."""
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """`SamplingParams(extra_args={"rolltree": {...}})`, or flat: `rolltree_key` and so on."""

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
        for field in fields(self):
            is_good, allowed = _RULES[field.name]
            value = getattr(self, field.name)
            if not (is_good(value) or (value is None and field.default is None)):
                raise refused(f"extra_args.{REQUEST_KEY}.{field.name}", value, allowed)

    @classmethod
    def read(cls, extra_args: Mapping[str, Any] | None) -> RequestOptions:
        """Read a request's `extra_args`, which may hold keys of others.

        Raises:
            InvalidInputError: an unknown name, or a value outside what is allowed.

        """
        flat = own_names(extra_args)
        if not flat or extra_args is None:
            return DEFAULT
        given = dict(_nested(extra_args.get(REQUEST_KEY)))
        for name in flat:
            if name != REQUEST_KEY:
                value = extra_args[name]
                field = _field(name, value)
                if field in given:
                    raise refused(f"extra_args.{name}", value, f"left out: extra_args.{REQUEST_KEY}.{field} is there")
                if value is not None:
                    given[field] = _from_text(name, value, field)
        return cls(**given)

    @property
    def remembered(self) -> bool:
        """Whether the text of this request enters the tree."""
        return self.kind != "validation" if self.remember is None else self.remember


def own_names(extra_args: object) -> list[str]:
    """Return the names in a request's `extra_args` that are meant for rolltree, misspelt ones included."""
    if not isinstance(extra_args, Mapping):
        return []
    return [name for name in extra_args if isinstance(name, str) and name.lower().startswith(REQUEST_KEY)]


def with_options(extra_args: Mapping[str, Any] | None, **options: object) -> dict[str, Any]:
    """Return `extra_args` with these options set, whichever spelling the others had.

    Raises:
        InvalidInputError: the options that are there are invalid.

    """
    known, mine = RequestOptions.read(extra_args), own_names(extra_args)
    set_already = {field.name: getattr(known, field.name) for field in fields(known)}
    nested = {name: value for name, value in set_already.items() if value != getattr(DEFAULT, name)} | options
    others = {name: value for name, value in (extra_args or {}).items() if name not in mine}
    return others | {REQUEST_KEY: nested}


def refused(name: str, value: object, allowed: str, fix: str = "") -> InvalidInputError:
    """Return the error for a value from outside, which may be huge or have no text."""
    error = InvalidInputError(name, _Clipped(value), allowed, fix)
    error.value = value
    return error


def refuse_unknown(where: str, given: Mapping[Any, Any], known: Iterable[str]) -> None:
    """Raise InvalidInputError for the first name in `given` that is not known, with the nearest that is."""
    known = list(known)
    for name, value in given.items():
        if name not in known:
            raise unknown(where, name, value, known)


def unknown(where: str, name: object, value: object, known: list[str]) -> InvalidInputError:
    """Return the error for a name that is not known."""
    text = name if isinstance(name, str) else repr(_Clipped(name))
    near = difflib.get_close_matches(text[:SHOWN], known, n=1)
    fix = f"Did you mean {near[0]!r}?" if near else ""
    return refused(f"{where}.{text[:SHOWN]}", value, f"left out: known are {', '.join(known)}", fix)


class _Clipped:
    """A value as an error shows it: never long, never failing."""

    def __init__(self, value: object) -> None:
        try:
            text = repr(value)
        except Exception:  # a number of more digits than Python prints, an object whose repr fails
            text = f"<{type(value).__name__}>"
        self._text = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

    def __repr__(self) -> str:
        return self._text


def _nested(given: object) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        fix = f"Over HTTP, set {', '.join(_flat_names())} in vllm_xargs instead."
        raise refused(f"extra_args.{REQUEST_KEY}", given, "a dictionary", fix)
    refuse_unknown(f"extra_args.{REQUEST_KEY}", given, _RULES)
    return given


def _flat_names() -> list[str]:
    return [FLAT + field.name for field in fields(RequestOptions)]


def _field(name: str, value: object) -> str:
    """Return the field that a flat name sets."""
    field = name.removeprefix(FLAT)
    if field == name or field not in _RULES:
        raise unknown("extra_args", name, value, _flat_names())
    return field


def _from_text(name: str, value: object, field: str) -> object:
    """Read a value that came over HTTP; what could mean two things is refused."""
    is_good, allowed = _RULES[field]
    read = _READERS.get(field, _text)(value)
    if not is_good(read):
        raise refused(f"extra_args.{name}", value, allowed)
    return read


def _text(value: object) -> object:
    """An id that happens to be a number is written out."""
    return str(value) if type(value) is int and abs(value) < 2**63 else value


def _whole(value: object) -> object:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < SHOWN:
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _boolean(value: object) -> object:
    if isinstance(value, str):
        return _BOOLEANS.get(value.lower(), value)
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


def _is_name(value: object) -> bool:
    """Half a surrogate pair is valid JSON, but cannot be sent on to the engine's process."""
    if not isinstance(value, str) or value == "":
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_version(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_boolean(value: object) -> bool:
    return isinstance(value, bool)


_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "key": (_is_name, "a non-empty text of valid Unicode"),
    "session": (_is_name, "a non-empty text of valid Unicode"),
    "version": (_is_version, "a whole number from 0 to 2147483647"),
    "kind": (lambda value: isinstance(value, str) and value in KINDS, f"one of {', '.join(KINDS)}"),
    "draft": (_is_boolean, "true or false"),
    "remember": (_is_boolean, "true or false"),
}
"""What each field of `RequestOptions` allows, and how an error says it."""
_READERS = {"version": _whole, "draft": _boolean, "remember": _boolean}

DEFAULT = RequestOptions()
