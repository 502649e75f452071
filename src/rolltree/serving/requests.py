"""Which request owns which session of the cache, and what of its text the tree knows: a state machine on plain data.

Works on row ids, lengths and token arrays as a batching engine keeps them; knows no engine and drafts nothing. Rows may
change from step to step, and drafts may be asked for in another call than the one that brings tokens.

Invariants: text enters a session once, in order, and never past the request's own end (`max_tokens`, a stop token), so
what a row held before or holds after never reaches another prompt's tree. A request that is skipped for some steps,
preempted or re-ordered is caught up from the token array; one whose text was taken back starts a new session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from rolltree.cache import RolloutCache
from rolltree.serving.batch import Batch, Wanted, Work
from rolltree.serving.conversations import Conversations
from rolltree.serving.counts import ServingCounts
from rolltree.serving.request import ServedRequest
from rolltree.serving.request_options import KINDS
from rolltree.serving.stop_tokens import StopTokens
from rolltree.serving.table import NO_HANDLE, Table
from rolltree.serving.versions import Source, Versions
from rolltree.tokens import as_tokens, prompt_key
from rolltree.types import Int32Array, Int64Array

NO_ENTRY = -1


class RequestBook:
    """The requests that are running, each with its session.

    Args:
        cache: where sessions are opened and closed.
        max_draft: tokens drafted for a request and step at most.
        max_length: tokens of prompt and output that a request may reach.
        sessions: conversations whose first prompt is remembered.
        counts: where tokens are counted by kind.
        infer: whether versions and conversations are taken from what else is known, where options do not name them.
        source: the best source of versions that there was before.

    """

    def __init__(
        self, cache: RolloutCache, *, max_draft: int, max_length: int, sessions: int = 4096,
        counts: ServingCounts | None = None, infer: bool = True, source: Source = Source.UPDATES,
    ) -> None:  # fmt: skip
        self.cache, self.max_draft, self.max_length = cache, max_draft, max_length
        self.counts = counts or ServingCounts()
        self.versions = Versions(cache, self.counts, infer=infer, source=source)
        self._conversations = Conversations(sessions)
        self._entry_of: dict[str, int] = {}
        self._table = Table()
        self._ids: list[str] | None = None
        self._row_entries: Int64Array = np.zeros(0, np.int64)
        self._orphans: list[int] = []  # sessions that could not be closed
        self._stops = StopTokens()

    def __len__(self) -> int:
        return len(self._entry_of)

    def __contains__(self, id: str) -> bool:
        return id in self._entry_of

    @property
    def running(self) -> list[str]:
        """Ids of all requests that have a session."""
        return list(self._entry_of)

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Tokens that end any of the running requests."""
        return frozenset(self._stops.counts)

    def step(self, batch: Batch, request_of: Callable[[str], ServedRequest]) -> Work:
        """Take in what a step sampled, opening requests that are new; `request_of` is asked once for each of these."""
        rows = len(batch.ids)
        emitted = np.fromiter(map(len, batch.sampled), np.int64, rows)
        lengths = batch.lengths[:rows].astype(np.int64)
        self._match_rows(batch.ids, emitted, request_of)
        entries, takes_part = self._row_entries, (self._row_entries >= 0) & (emitted > 0)  # entry -1 may be looked up
        known = self._table.known[entries]
        if (takes_part & (lengths - emitted < known)).any():
            self._restart_rewound(batch.ids, lengths - emitted, emitted, request_of)
            entries, known = self._row_entries, self._table.known[self._row_entries]
        until = np.minimum(lengths, self._table.end[entries])
        active = np.flatnonzero(takes_part & (until > known))
        where = active if batch.where is None else batch.where[active]
        return self._work(active, entries[active], known[active], until[active], batch.tokens, where)

    def wanted(self, ids: Sequence[str]) -> Wanted:
        """Return sessions and limits of these requests; what is unknown, or has no text, is left out."""
        entries = self._row_entries if ids == self._ids else self._entries(ids)
        handles = self._table.handle[entries]
        rows = np.flatnonzero((entries >= 0) & (handles != NO_HANDLE))
        if len(rows) < len(ids):
            entries, handles = entries[rows], handles[rows]
        known, wall, end = self._table.known[entries], self._table.wall[entries], self._table.end[entries]
        end = np.where(known < wall, np.minimum(wall, end), end)
        room = np.minimum(end - known - 1, self._table.draft[entries])
        return Wanted(rows, handles, np.maximum(room, 0).astype(np.int32))

    def handles(self, ids: Sequence[str]) -> Int64Array:
        """Return the session of each request, -1 where it has none."""
        entries = self._entries(ids)
        return np.where(entries >= 0, self._table.handle[entries], NO_HANDLE)

    def _entries(self, ids: Sequence[str]) -> Int64Array:
        return np.fromiter((self._entry_of.get(id, NO_ENTRY) for id in ids), np.int64, len(ids))

    def finish(self, ids: Iterable[str]) -> None:
        """End requests, keeping their text; ids that never started are ignored.

        One that runs on continues in a new session, its whole text from the prompt on.
        """
        for id in ids:
            entry = self._entry_of.pop(id, NO_ENTRY)
            if entry != NO_ENTRY:
                self._release(entry)
                self._ids = None

    def end(self, id: str, output: Sequence[int] | None) -> None:
        """End a request that generated `output`, of which a step may be missing or too much; None: what is known."""
        entry = self._entry_of.get(id, NO_ENTRY)
        if output is not None and entry != NO_ENTRY and self._table.handle[entry] != NO_HANDLE:
            self._correct(id, entry, output)
        self.finish([id])

    def _correct(self, id: str, entry: int, output: Sequence[int]) -> None:
        """Make a session's text that of `output`: the engine ran on behind the end, or did not ask in the last step."""
        request, begin = self._table.requests[entry], int(self._table.prompt[entry])
        assert request is not None
        known, until = int(self._table.known[entry]) - begin, min(len(output), int(self._table.end[entry]) - begin)
        if until < known:
            self.cache.close(int(self._table.handle[entry]), keep=False)
            self._table.handle[entry] = handle = self._open(id, request)
            self.cache.extend(handle, output[:until])
        elif until > known:
            ends = (n + 1 for n in range(known, until) if output[n] in request.stop_ids and n + 1 >= request.min_tokens)
            self.cache.extend(int(self._table.handle[entry]), output[known : next(ends, until)])

    def restart(self, ids: Iterable[str]) -> None:
        """The text of these requests changed (a streamed prompt grew): each continues in a new session."""
        for id in ids:
            entry = self._entry_of.get(id, NO_ENTRY)
            request = self._table.requests[entry] if entry != NO_ENTRY else None
            if request is not None and request.prompt is not None:
                self._conversations.remember(f"request:{id}", request.prompt)
                self.finish([id])

    def drop(self) -> None:
        """After a failure: forget all running requests, whose sessions may be inconsistent. They start anew."""
        for entry in self._entry_of.values():
            with contextlib.suppress(Exception):  # tried once more below
                self._release(entry, keep=False)
        orphans, self._orphans = self._orphans, []
        for handle in orphans:
            with contextlib.suppress(Exception):  # what cannot be closed is lost; the engine goes on
                self.cache.close(handle, keep=False)
        self._entry_of.clear()
        self._ids = None

    def _match_rows(self, ids: list[str], emitted: Int64Array, request_of: Callable[[str], ServedRequest]) -> None:
        """Bring `_row_entries` up to date; most steps have the rows of the step before."""
        if ids == self._ids and (self._row_entries[emitted > 0] >= 0).all():
            return
        for row, id in enumerate(ids):
            if emitted[row] and id not in self._entry_of:
                self._start(id, request_of(id))
        self._ids = list(ids)
        self._row_entries = self._entries(ids)

    def _start(self, id: str, request: ServedRequest) -> None:
        entry = self._table.take()
        prompt = len(request.prompt) if request.has_text and request.prompt is not None else 0
        last = self.max_length if request.max_tokens is None else min(self.max_length, prompt + request.max_tokens)
        draft = self.max_draft if request.options.draft else 0
        self._table.set(entry, request, prompt=prompt, end=last if request.has_text else 0, draft=draft)
        self._entry_of[id] = entry
        self._stops.add(request.stop_ids)
        if request.has_text:
            is_named = request.options.key is not None or request.options.session is not None
            self.counts.inferred_sessions += not is_named and self._session(request) is not None
            self._table.handle[entry] = self._open(id, request)

    def expect(self, id: str, request: ServedRequest) -> None:
        """A request's first token is to come: its tree may be made again meanwhile."""
        if request.has_text and id not in self._entry_of:
            root, key, _ = self._place(id, request)
            self.cache.expect(root, key=key)

    def _place(self, id: str, request: ServedRequest) -> tuple[Int32Array, str | None, Int32Array]:
        """Return what a request's tree begins with, the tree's key, and the prompt.

        A later turn of a conversation continues in the tree of its first prompt.
        """
        assert request.prompt is not None
        key, prompt = request.options.key, as_tokens(request.prompt)
        root = prompt if key is not None else self._conversations.root(id, self._session(request), prompt)
        if key is None and any(place < len(root) for place, _ in request.media):
            key = prompt_key(root, media=request.media)
        return root, key, prompt

    def _open(self, id: str, request: ServedRequest) -> int:
        """Open a session."""
        options, version = request.options, self.versions.of(request)
        root, key, prompt = self._place(id, request)
        read_only = not options.remembered
        ahead = options.kind == "run-ahead"
        seed, offset = request.noise_seed, len(prompt) - 1  # the first token is drawn at the prompt's last position
        handle = self.cache.open(
            root, key=key, version=version, read_only=read_only, run_ahead=ahead,
            seed=seed, coupled=seed is not None, murmur3_offset=None if seed is None else offset,
        )  # fmt: skip
        if len(root) < len(prompt):
            self.cache.extend(handle, prompt[len(root) :], context=True)
        return handle

    def _session(self, request: ServedRequest) -> str | None:
        named = request.options.session
        return request.session if named is None and self.versions.infer else named

    def _release(self, entry: int, *, keep: bool = True) -> None:
        request, handle = self._table.requests[entry], int(self._table.handle[entry])
        self._table.free(entry)  # first: a close that fails must not keep the entry
        if request is not None:
            self._stops.remove(request.stop_ids)
        if handle != NO_HANDLE:
            self._orphans.append(handle)
            self.cache.close(handle, keep=keep)
            self._orphans.pop()

    def _restart_rewound(
        self, ids: list[str], before: Int64Array, emitted: Int64Array, request_of: Callable[[str], ServedRequest]
    ) -> None:
        """Start those anew whose text before this step is shorter than what the tree knows: it was taken back."""
        entries = self._row_entries
        rewound = np.flatnonzero((entries >= 0) & (emitted > 0) & (before < self._table.known[entries]))
        for row in rewound:
            entry = int(entries[row])
            if before[row] < min(self._table.known[entry], self._table.end[entry]):
                self._entry_of.pop(ids[row])
                self._release(entry, keep=False)
                self._start(ids[row], request_of(ids[row]))
                self._row_entries[row] = self._entry_of[ids[row]]

    def _work(
        self, rows: Int64Array, entries: Int64Array, known: Int64Array, until: Int64Array,
        tokens: npt.NDArray[np.integer], where: Int64Array,
    ) -> Work:  # fmt: skip
        text, offsets = _gather(tokens, where, known, until)
        if (ends := self._stops.places(text)).size:
            until = self._stopped(ends, text, offsets, entries, known, until)
            text, offsets = _gather(tokens, where, known, until)
        self._table.known[entries] = until
        self._count(self._table.kind[entries], until - known)
        return Work(rows, self._table.handle[entries], text, offsets)

    def _count(self, kinds: npt.NDArray[np.integer], tokens: Int64Array) -> None:
        """Count what each kind of request got in a step."""
        counts, rows = np.bincount(kinds, tokens, len(KINDS)), np.bincount(kinds, tokens > 0, len(KINDS))
        for index, kind in enumerate(KINDS):
            self.counts.tokens_by_kind[kind] += int(counts[index])
            self.counts.row_steps_by_kind[kind] += int(rows[index])

    def _stopped(
        self, ends: Int64Array, text: Int32Array, offsets: Int32Array,
        entries: Int64Array, known: Int64Array, until: Int64Array,
    ) -> Int64Array:  # fmt: skip
        """Return `until` with every request cut behind its first stop token; it takes no more text from then on."""
        until = until.copy()
        for place in ends[::-1]:  # the first of a row is handled last and wins
            row = int(np.searchsorted(offsets, place, side="right")) - 1
            entry = int(entries[row])
            request, length = self._table.requests[entry], int(known[row] + place - offsets[row] + 1)
            assert request is not None
            if int(text[place]) in request.stop_ids and length - self._table.prompt[entry] >= request.min_tokens:
                until[row] = self._table.end[entry] = length
        return until


def _gather(
    tokens: npt.NDArray[np.integer], rows: Int64Array, start: Int64Array, end: Int64Array
) -> tuple[Int32Array, Int32Array]:
    """Return `tokens[row, start:end]` of all rows, one after the other, and where each begins."""
    counts = end - start
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    columns = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], counts)
    return tokens[np.repeat(rows, counts), columns].astype(np.int32), offsets
