"""What one request may set, under either of two spellings: nested for Python, flat for HTTP.

A host hands over the dictionary that its requests carry for others (vLLM: `extra_args`, SGLang: `custom_params`).
`{"rolltree": {"key": "k"}}` holds Python values, which must have the right type. Over HTTP often only texts, numbers
and lists travel, one level deep: `{"rolltree_key": "k"}`, and there "true", 1 and "3" are read as what they can only
mean. Both spellings are read from the fields of `RequestOptions`.

Invariant: whatever the dictionary holds, nothing but InvalidInputError leaves `RequestOptions.read`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rolltree.errors import InvalidInputError

REQUEST_KEY = "rolltree"
"""The entry of the host's dictionary that holds the options, of a request as of an engine."""
FLAT = f"{REQUEST_KEY}_"
"""What flat names begin with."""
KINDS = ("rollout", "validation", "run-ahead")
SHOWN = 200
"""Characters of a bad name that an error repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """Nested, `{"rolltree": {"key": ...}}`, or flat, `{"rolltree_key": ...}`."""

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
            _check(f"{REQUEST_KEY}.{field.name}", field.name, getattr(self, field.name))

    @classmethod
    def read(cls, given: Mapping[str, Any] | None, *, where: str = "request") -> RequestOptions:
        """Read the dictionary that a request carries, which may hold keys of others.

        Args:
            given: as the host hands it over.
            where: what the user calls it, for errors.

        Raises:
            InvalidInputError: an unknown name, or a value outside what is allowed.

        """
        names = own_names(given)
        if not names or given is None:
            return DEFAULT
        options = dict(_nested(given.get(REQUEST_KEY), f"{where}.{REQUEST_KEY}"))
        for name in names:
            if name != REQUEST_KEY:
                place, value, field = f"{where}.{name}", given[name], _field(name, given[name], where)
                if field in options:
                    raise InvalidInputError(place, value, f"left out: {where}.{REQUEST_KEY}.{field} is there")
                if value is not None:
                    options[field] = _from_text(place, value, field)
        return cls(**options)

    @property
    def remembered(self) -> bool:
        """Whether the text of this request enters the tree."""
        return self.kind != "validation" if self.remember is None else self.remember


def own_names(given: object) -> list[str]:
    """Return the names in a request's dictionary that are meant for rolltree, misspelt ones included."""
    if not isinstance(given, Mapping):
        return []
    return [name for name in given if isinstance(name, str) and name.lower().startswith(REQUEST_KEY)]


def with_options(given: Mapping[str, Any] | None, **options: object) -> dict[str, Any]:
    """Return a request's dictionary with these options set, whichever spelling the others had.

    Raises:
        InvalidInputError: the options that are there are invalid.

    """
    known, mine = RequestOptions.read(given), own_names(given)
    set_already = {field.name: getattr(known, field.name) for field in fields(known)}
    nested = {name: value for name, value in set_already.items() if value != getattr(DEFAULT, name)} | options
    others = {name: value for name, value in (given or {}).items() if name not in mine}
    return others | {REQUEST_KEY: nested}


def refuse_unknown(where: str, given: Mapping[Any, Any], known: Iterable[str]) -> None:
    """Raise InvalidInputError for the first name in `given` that is not known, with the nearest that is."""
    known = list(known)
    for name, value in given.items():
        if name not in known:
            raise unknown(where, name, value, known)


def unknown(where: str, name: object, value: object, known: list[str]) -> InvalidInputError:
    """Return the error for a name that is not known."""
    text = name[:SHOWN] if isinstance(name, str) else f"<{type(name).__name__}>"
    near = difflib.get_close_matches(text, known, n=1)
    fix = f"Did you mean {near[0]!r}?" if near else ""
    return InvalidInputError(f"{where}.{text}", value, f"left out: known are {', '.join(known)}", fix)


def _nested(given: object, where: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidInputError(where, given, "a dictionary", f"Over HTTP, set {', '.join(_flat_names())} instead.")
    refuse_unknown(where, given, _RULES)
    for name, value in given.items():
        _check(f"{where}.{name}", name, value)
    return given


def _check(place: str, field: str, value: object) -> None:
    is_good, allowed = _RULES[field]
    is_unset = value is None and RequestOptions.__dataclass_fields__[field].default is None
    if not (is_unset or is_good(value)):
        raise InvalidInputError(place, value, allowed)


def _flat_names() -> list[str]:
    return [FLAT + field.name for field in fields(RequestOptions)]


def _field(name: str, value: object, where: str) -> str:
    """Return the field that a flat name sets."""
    field = name.removeprefix(FLAT)
    if field == name or field not in _RULES:
        raise unknown(where, name, value, _flat_names())
    return field


def _from_text(place: str, value: object, field: str) -> object:
    """Read a value that came over HTTP; what could mean two things is refused."""
    is_good, allowed = _RULES[field]
    read = _READERS.get(field, _text)(value)
    if not is_good(read):
        raise InvalidInputError(place, value, allowed)
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
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_READERS = {"version": _whole, "draft": _boolean, "remember": _boolean}

DEFAULT = RequestOptions()
LEFT_ALONE = RequestOptions(draft=False, remember=False)
"""Of a request whose own options are invalid."""
