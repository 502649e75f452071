"""Every error that rolltree raises on purpose.

A message names the dotted setting or argument, the value got, what is allowed and the fix. User mistakes are also
`ValueError`s, so callers that know nothing of rolltree can catch them.
"""

from __future__ import annotations

_MOST_SHOWN = 200  # characters of a value in a message


class RolltreeError(Exception):
    """Base of all rolltree errors."""


class InvalidInputError(RolltreeError, ValueError):
    """An argument or a setting is outside what is allowed; nothing was changed."""

    def __init__(self, name: str, value: object, allowed: str, fix: str = "") -> None:
        self.name, self.value, self.allowed, self.fix = name, value, allowed, fix
        super().__init__(f"{name} = {_shown(value)}: must be {allowed}." + (f" {fix}" if fix else ""))

    def __reduce__(self) -> tuple[type[InvalidInputError], tuple[str, object, str, str]]:
        """Travels to other processes, as errors of workers do."""
        return type(self), (self.name, self.value, self.allowed, self.fix)


def _shown(value: object) -> str:
    """`value` as a message shows it, whatever it is: some have no representation, or one of a million characters."""
    try:
        text = repr(value)
    except Exception:  # an integer beyond 4,300 digits, or an object whose __repr__ fails
        return f"<{type(value).__name__}>"
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."


class SessionClosedError(RolltreeError, ValueError):
    """The session was closed, or its handle never existed."""


class CapacityError(RolltreeError, RuntimeError):
    """A limit (bytes, slots, context) leaves no room for this request, however long it waits."""


class RequestError(RolltreeError, RuntimeError):
    """One request failed (NaN logits, out of memory, too long); the others went on."""


class MissingDependencyError(RolltreeError, ImportError):
    """A feature needs a package that is not installed; the message holds the pip command."""


class StoreError(RolltreeError, RuntimeError):
    """The durable store cannot be read or written; the message names the file, the reason and the fix."""


class StoreVersionError(StoreError):
    """A newer rolltree wrote the store."""


class StoreCorruptedError(StoreError):
    """The store's file is damaged, or no database at all."""
