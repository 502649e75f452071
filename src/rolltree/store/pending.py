"""What was handed over and is not in the file yet: in the order of `put`, and by prompt.

Nothing leaves before it is committed or given up, so a write that fails changes no order. Not thread-safe: the writer
holds its lock.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

from rolltree.store.rows import Packed
from rolltree.traces.rollout import StoredRollout

OVERHEAD = 1024
"""Bytes of a rollout's objects, besides its arrays."""


@dataclass(slots=True, eq=False)
class PendingRollout:
    """A rollout on its way."""

    number: int
    """Counts the puts, from 1."""
    digest: bytes
    """Of its prompt."""
    rollout: StoredRollout
    bytes: int
    """That it takes in memory, about."""
    packed: Packed | None = None
    id: int = 0
    """Row that it was given in a transaction that may not be committed yet; 0 without one."""
    prompt: int = 0
    """Its prompt's row, likewise."""

    def named(self) -> str:
        """How a log calls it."""
        rollout = self.rollout
        key = f"prompt {self.digest.hex()}" if rollout.key is None else f"key {rollout.key[:80]!r}"
        return f"{key}, version {rollout.version}, sample {rollout.sample}, {len(rollout.token_ids)} tokens"


class Pending:
    """A queue that can also be asked by prompt; all O(1) but `entries`, and `drop` while something is being written."""

    def __init__(self) -> None:
        self.put = self.bytes = 0
        """Rollouts that were ever handed over, and what those that are here take in memory."""
        self._all: OrderedDict[int, PendingRollout] = OrderedDict()
        self._named: dict[str | bytes, dict[int, PendingRollout]] = {}
        self._flying = self._flight = 0  # the first are being written: up to this number, and so many
        self._flying_bytes = 0

    def __len__(self) -> int:
        return len(self._all)

    @property
    def at_rest(self) -> int:
        """How many are not being written now."""
        return len(self._all) - self._flight

    @property
    def bytes_at_rest(self) -> int:
        """Bytes of those."""
        return self.bytes - self._flying_bytes

    def add(self, rollout: StoredRollout, digest: bytes) -> None:
        """Take one more."""
        self.put += 1
        entry = self._all[self.put] = PendingRollout(self.put, digest, rollout, _bytes(rollout))
        self.bytes += entry.bytes
        self._named.setdefault(_name(entry), {})[entry.number] = entry

    def first(self, most: int, most_bytes: int) -> list[PendingRollout]:
        """The oldest, to be written now: `most` and, but for one alone, of `most_bytes`; they stay until `remove`."""
        self.landed()
        found = list[PendingRollout]()
        for entry in islice(self._all.values(), most):
            if found and self._flying_bytes + entry.bytes > most_bytes:
                break
            found.append(entry)
            self._flying_bytes += entry.bytes
        self._flying, self._flight = found[-1].number if found else 0, len(found)
        return found

    def landed(self) -> None:
        """Nothing is being written now."""
        self._flying = self._flight = self._flying_bytes = 0

    def remove(self, entry: PendingRollout) -> None:
        """It is committed, or given up."""
        if self._all.pop(entry.number, None) is None:
            return
        self.bytes -= entry.bytes
        if entry.number <= self._flying:
            self._flight -= 1
            self._flying_bytes -= entry.bytes
        group = self._named.get(_name(entry), {})
        group.pop(entry.number, None)
        if not group:
            self._named.pop(_name(entry), None)

    def drop(self) -> PendingRollout | None:
        """Give up the oldest that is not being written; None where there is none."""
        entry = next(islice(self._all.values(), self._flight, None), None)
        if entry is not None:
            self.remove(entry)
        return entry

    def older_than(self, number: int) -> bool:
        """Whether one of the first `number` that were handed over is still here."""
        return next(iter(self._all), number + 1) <= number

    def entries(self) -> list[PendingRollout]:
        """All, oldest first."""
        return list(self._all.values())

    def of(self, digest: bytes | None, key: str | None) -> list[PendingRollout]:
        """Those of a prompt and key (None: any prompt of the key), oldest first."""
        group = self._named.get(key if key is not None else digest or b"", {})
        return [entry for entry in group.values() if digest is None or entry.digest == digest]


def _bytes(rollout: StoredRollout) -> int:
    logprobs = 0 if rollout.logprobs is None else rollout.logprobs.nbytes
    return OVERHEAD + rollout.prompt_token_ids.nbytes + rollout.token_ids.nbytes + logprobs + 128 * len(rollout.context)


def _name(entry: PendingRollout) -> str | bytes:
    return entry.digest if entry.rollout.key is None else entry.rollout.key


def unwritten(waiting: list[PendingRollout], newest: int) -> list[StoredRollout]:
    """What of `waiting` a read of the file did not see, which was made afterwards and saw rows up to `newest`."""
    return [entry.rollout for entry in waiting if not 0 < entry.id <= newest]
