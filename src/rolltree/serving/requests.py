"""Which request owns which session of the cache, and what of its text the tree knows: a state machine on plain data.

Works on row ids, lengths and token arrays as a batching engine keeps them; knows nothing of vLLM and drafts nothing.

Invariants: text enters a session once, in order, and never past the request's own end (`max_tokens`, a stop token), so
what a row held before or holds after never reaches another prompt's tree. A request that is skipped for some steps,
preempted or re-ordered is caught up from the token array; one whose text was taken back starts a new session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rolltree.cache import RolloutCache
from rolltree.serving.conversations import Conversations
from rolltree.serving.request_options import KINDS
from rolltree.serving.slots import NO_HANDLE, Facts, Slots
from rolltree.tokens import as_tokens, prompt_key
from rolltree.types import Int32Array, Int64Array

__all__ = ["Batch", "Facts", "RequestBook", "Work"]

NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """One engine step after sampling. Row i of all fields is the same request."""

    ids: list[str]
    sampled: Sequence[Sequence[int]]
    """Tokens sampled in this step; empty while the prompt is being read."""
    lengths: npt.NDArray[np.integer]
    """Shape [rows or more]: tokens of prompt and output, those of this step included."""
    tokens: npt.NDArray[np.integer]
    """Shape [rows or more, longest sequence]: prompt and output, undefined past `lengths`."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the drafter is to do in this step, for the A rows that take part."""

    rows: Int64Array
    """Shape [A]: their rows in the batch."""
    handles: Int64Array
    """Shape [A]: their sessions."""
    tokens: Int32Array
    """Shape [n]: new text of all of them."""
    offsets: Int32Array
    """Shape [A + 1]: row a's new text is `tokens[offsets[a]:offsets[a + 1]]`."""
    limits: Int32Array
    """Shape [A]: tokens that may be drafted."""


class RequestBook:
    """The requests that are running, each with its session.

    Args:
        cache: where sessions are opened and closed.
        max_draft: tokens drafted for a request and step at most.
        max_length: tokens of prompt and output that a request may reach.
        sessions: conversations whose first prompt is remembered.

    """

    def __init__(self, cache: RolloutCache, *, max_draft: int, max_length: int, sessions: int = 4096) -> None:
        self.cache, self.max_draft, self.max_length = cache, max_draft, max_length
        self.tokens_by_kind = dict.fromkeys(KINDS, 0)
        self.row_steps_by_kind = dict.fromkeys(KINDS, 0)
        """(request, engine step) pairs in which it got tokens."""
        self._conversations = Conversations(sessions)
        self._slot_of: dict[str, int] = {}
        self._slots = Slots()
        self._ids: list[str] | None = None
        self._row_slots: Int64Array = np.zeros(0, np.int64)
        self._orphans: list[int] = []  # sessions that could not be closed
        self._stops: dict[int, int] = {}  # stop token -> running requests that it ends
        self._stop_array: Int64Array = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, id: str) -> bool:
        return id in self._slot_of

    @property
    def running(self) -> list[str]:
        """Ids of all requests that have a session."""
        return list(self._slot_of)

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Tokens that end any of the running requests."""
        return frozenset(self._stops)

    def step(self, batch: Batch, facts_of: Callable[[str], Facts]) -> Work:
        """Take in what a step sampled, opening requests that are new; `facts_of` is asked once for each of these."""
        rows = len(batch.ids)
        emitted = np.fromiter(map(len, batch.sampled), np.int64, rows)
        lengths = batch.lengths[:rows].astype(np.int64)
        self._match_rows(batch.ids, emitted, facts_of)
        slots, takes_part = self._row_slots, (self._row_slots >= 0) & (emitted > 0)  # slot -1 may be looked up
        known = self._slots.known[slots]
        if (takes_part & (lengths - emitted < known)).any():
            self._restart_rewound(batch.ids, lengths - emitted, emitted, facts_of)
            slots, known = self._row_slots, self._slots.known[self._row_slots]
        until = np.minimum(lengths, self._slots.end[slots])
        active = np.flatnonzero(takes_part & (until > known))
        return self._work(active, slots[active], known[active], until[active], batch.tokens)

    def finish(self, ids: Iterable[str]) -> None:
        """End requests, keeping their text; ids that never started are ignored.

        One that runs on continues in a new session, its whole text from the prompt on.
        """
        for id in ids:
            slot = self._slot_of.pop(id, NO_SLOT)
            if slot != NO_SLOT:
                self._release(slot)
                self._ids = None

    def end(self, id: str, output: Sequence[int] | None) -> None:
        """End a request that generated `output`, of which a step may be missing or too much; None: what is known."""
        slot = self._slot_of.get(id, NO_SLOT)
        if output is not None and slot != NO_SLOT and self._slots.handle[slot] != NO_HANDLE:
            self._correct(id, slot, output)
        self.finish([id])

    def _correct(self, id: str, slot: int, output: Sequence[int]) -> None:
        """Make a session's text that of `output`: the engine ran on behind the end, or did not ask in the last step."""
        facts, begin = self._slots.facts[slot], int(self._slots.prompt[slot])
        assert facts is not None
        known, until = int(self._slots.known[slot]) - begin, min(len(output), int(self._slots.end[slot]) - begin)
        if until < known:
            self.cache.close(int(self._slots.handle[slot]), keep=False)
            self._slots.handle[slot] = handle = self._open(id, facts)
            self.cache.extend(handle, output[:until])
        elif until > known:
            ends = (n + 1 for n in range(known, until) if output[n] in facts.stop_ids and n + 1 >= facts.min_tokens)
            self.cache.extend(int(self._slots.handle[slot]), output[known : next(ends, until)])

    def restart(self, ids: Iterable[str]) -> None:
        """The text of these requests changed (a streamed prompt grew): each continues in a new session."""
        for id in ids:
            slot = self._slot_of.get(id, NO_SLOT)
            facts = self._slots.facts[slot] if slot != NO_SLOT else None
            if facts is not None and facts.prompt is not None:
                self._conversations.remember(f"request:{id}", facts.prompt)
                self.finish([id])

    def drop(self) -> None:
        """After a failure: forget all running requests, whose sessions may be inconsistent. They start anew."""
        for slot in self._slot_of.values():
            with contextlib.suppress(Exception):  # tried once more below
                self._release(slot, keep=False)
        orphans, self._orphans = self._orphans, []
        for handle in orphans:
            with contextlib.suppress(Exception):  # what cannot be closed is lost; the engine goes on
                self.cache.close(handle, keep=False)
        self._slot_of.clear()
        self._ids = None

    def _match_rows(self, ids: list[str], emitted: Int64Array, facts_of: Callable[[str], Facts]) -> None:
        """Bring `_row_slots` up to date; most steps have the rows of the step before."""
        if ids == self._ids and (self._row_slots[emitted > 0] >= 0).all():
            return
        for row, id in enumerate(ids):
            if emitted[row] and id not in self._slot_of:
                self._start(id, facts_of(id))
        self._ids = list(ids)
        self._row_slots = np.fromiter((self._slot_of.get(id, NO_SLOT) for id in ids), np.int64, len(ids))

    def _start(self, id: str, facts: Facts) -> None:
        slot = self._slots.take()
        has_text = facts.prompt is not None and (facts.options.draft or facts.options.remembered)
        prompt = len(facts.prompt) if has_text and facts.prompt is not None else 0
        last = self.max_length if facts.max_tokens is None else min(self.max_length, prompt + facts.max_tokens)
        self._slots.set(slot, facts, prompt=prompt, end=last if has_text else 0)
        self._slots.draft[slot] = self.max_draft if facts.options.draft else 0
        self._slot_of[id] = slot
        self._count_stops(facts.stop_ids, 1)
        if has_text:
            self._slots.handle[slot] = self._open(id, facts)

    def _open(self, id: str, facts: Facts) -> int:
        """Open a session; a later turn of a conversation continues in the tree of its first prompt."""
        assert facts.prompt is not None
        options, prompt = facts.options, as_tokens(facts.prompt)
        if options.version is not None and options.version > self.cache.version:
            self.cache.set_version(options.version)
        key = options.key
        root = prompt if key is not None else self._conversations.root(id, options.session, prompt)
        if key is None and any(place < len(root) for place, _ in facts.media):
            key = prompt_key(root, media=facts.media)
        read_only = not options.remembered
        ahead = options.kind == "run-ahead"
        handle = self.cache.open(root, key=key, version=options.version, read_only=read_only, run_ahead=ahead)
        if len(root) < len(prompt):
            self.cache.extend(handle, prompt[len(root) :], context=True)
        return handle

    def _release(self, slot: int, *, keep: bool = True) -> None:
        facts, handle = self._slots.facts[slot], int(self._slots.handle[slot])
        self._slots.free(slot)  # first: a close that fails must not keep the slot
        if facts is not None:
            self._count_stops(facts.stop_ids, -1)
        if handle != NO_HANDLE:
            self._orphans.append(handle)
            self.cache.close(handle, keep=keep)
            self._orphans.pop()

    def _restart_rewound(
        self, ids: list[str], before: Int64Array, emitted: Int64Array, facts_of: Callable[[str], Facts]
    ) -> None:
        """Start those anew whose text before this step is shorter than what the tree knows: it was taken back."""
        slots = self._row_slots
        rewound = np.flatnonzero((slots >= 0) & (emitted > 0) & (before < self._slots.known[slots]))
        for row in rewound:
            slot = int(slots[row])
            if before[row] < min(self._slots.known[slot], self._slots.end[slot]):
                self._slot_of.pop(ids[row])
                self._release(slot, keep=False)
                self._start(ids[row], facts_of(ids[row]))
                self._row_slots[row] = self._slot_of[ids[row]]

    def _work(
        self, rows: Int64Array, slots: Int64Array, known: Int64Array, until: Int64Array, tokens: npt.NDArray[np.integer]
    ) -> Work:
        text, offsets = _gather(tokens, rows, known, until)
        if len(self._stop_array) and (ends := _places(text, self._stop_array)).size:
            until = self._stopped(ends, text, offsets, slots, known, until)
            text, offsets = _gather(tokens, rows, known, until)
        self._slots.known[slots] = until
        room = np.minimum(self._slots.end[slots] - until - 1, self._slots.draft[slots])
        self._count(self._slots.kind[slots], until - known)
        return Work(rows, self._slots.handle[slots], text, offsets, np.maximum(room, 0).astype(np.int32))

    def _count(self, kinds: npt.NDArray[np.integer], tokens: Int64Array) -> None:
        """Count what each kind of request got in a step."""
        counts, rows = np.bincount(kinds, tokens, len(KINDS)), np.bincount(kinds, tokens > 0, len(KINDS))
        for index, kind in enumerate(KINDS):
            self.tokens_by_kind[kind] += int(counts[index])
            self.row_steps_by_kind[kind] += int(rows[index])

    def _stopped(
        self,
        ends: Int64Array,
        text: Int32Array,
        offsets: Int32Array,
        slots: Int64Array,
        known: Int64Array,
        until: Int64Array,
    ) -> Int64Array:
        """Return `until` with every request cut behind its first stop token; it takes no more text from then on."""
        until = until.copy()
        for place in ends[::-1]:  # the first of a row is handled last and wins
            row = int(np.searchsorted(offsets, place, side="right")) - 1
            slot = int(slots[row])
            facts, length = self._slots.facts[slot], int(known[row] + place - offsets[row] + 1)
            assert facts is not None
            if int(text[place]) in facts.stop_ids and length - self._slots.prompt[slot] >= facts.min_tokens:
                until[row] = self._slots.end[slot] = length
        return until

    def _count_stops(self, ids: frozenset[int], change: int) -> None:
        before = len(self._stops)
        for id in ids:
            self._stops[id] = self._stops.get(id, 0) + change
            if not self._stops[id]:
                del self._stops[id]
        if len(self._stops) != before:
            self._stop_array = np.fromiter(self._stops, np.int64, len(self._stops))


def _places(text: Int32Array, wanted: Int64Array) -> Int64Array:
    """Where in `text` any of the `wanted` tokens stands; most requests have one or two stop tokens."""
    if len(wanted) > 4:
        return np.flatnonzero(np.isin(text, wanted))
    found = text == wanted[0]
    for token in wanted[1:]:
        found |= text == token
    return np.flatnonzero(found)


def _gather(
    tokens: npt.NDArray[np.integer], rows: Int64Array, start: Int64Array, end: Int64Array
) -> tuple[Int32Array, Int32Array]:
    """Return `tokens[row, start:end]` of all rows, one after the other, and where each begins."""
    counts = end - start
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    columns = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], counts)
    return tokens[np.repeat(rows, counts), columns].astype(np.int32), offsets
