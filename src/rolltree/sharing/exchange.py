"""Where engines meet: keeps what each told, and answers what another does not know yet of the prompts it generates.

An engine gets text of its own prompts only, so bytes grow with the samples of a prompt, not with the square of the
replicas. Knows nothing of who asks but what is in the request: an engine that restarts asks anew, and an exchange that
restarts is empty. Reads no token ids. Not thread-safe.

Invariant: the bytes that are kept stay within the capacity; the prompts that nobody asked for longest leave first.
"""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from rolltree.sharing.message import Fingerprint, Piece, Reply, Request, Want

CAPACITY = 512 << 20
"""Bytes: some 700 million tokens of history at 0.7 bytes each, were it all text."""
WINDOW = 64
"""Finished rollouts of a prompt: as many as a tree keeps."""
FORGET_SECONDS = 600.0
"""A running rollout that did not grow for so long will not go on."""


@dataclass(slots=True)
class _Stream:
    """A rollout, running or finished."""

    sender: str
    touched: float = 0.0
    pieces: list[Piece] = field(default_factory=list)
    stop: int = 0
    number: int = 0

    def after(self, have: int) -> Iterator[Piece]:
        """Pieces that have what is behind the first `have` tokens; the last always, because it may end the rollout."""
        yield from (piece for piece in self.pieces if piece.stop > have or piece.is_done)


@dataclass(slots=True)
class _Prompt:
    running: dict[str, _Stream] = field(default_factory=dict)
    done: OrderedDict[str, _Stream] = field(default_factory=OrderedDict)
    size: int = 0


class Exchange:
    """Keeps rollouts of many engines by prompt.

    Args:
        capacity: bytes of text that are kept.
        window: finished rollouts that are kept of each prompt.
        clock: seconds.

    """

    def __init__(
        self, *, capacity: int = CAPACITY, window: int = WINDOW, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.id = uuid.uuid4().hex
        self.size = 0
        """Bytes kept."""
        self._capacity, self._window, self._clock = capacity, window, clock
        self._fingerprint: Fingerprint | None = None
        self._prompts: OrderedDict[str, _Prompt] = OrderedDict()
        self._number = 0

    def trade(self, request: Request) -> Reply:
        """Take in what an engine tells and answer what it asks; engines of another model are refused."""
        self._fingerprint = ours = self._fingerprint or request.fingerprint
        if request.fingerprint != ours:
            why = f"it is shared by engines of {ours}, and this one has {request.fingerprint}"
            return Reply(fingerprint=ours, exchange=self.id, refused=why, seen={})
        for piece in request.pieces:
            self._put(piece, request.sender)
        self._drop(request.dropped, request.sender)
        self._make_room()
        return self._answer(request)

    def _put(self, piece: Piece, sender: str) -> None:
        prompt = self._prompts.get(piece.name) or _Prompt()
        stream = prompt.running.get(piece.stream)
        if stream is None:
            if piece.head is None or piece.stream in prompt.done:
                return  # of before a restart of ours, or told twice
            self._prompts[piece.name] = prompt
            stream = prompt.running[piece.stream] = _Stream(sender)
        stream.touched = self._clock()
        if piece.start > stream.stop or (piece.stop <= stream.stop and not piece.is_done):
            return
        stream.pieces.append(piece)
        stream.stop = max(stream.stop, piece.stop)
        self._resize(prompt, piece.size)
        if piece.is_done:
            self._finish(prompt, piece.stream)

    def _finish(self, prompt: _Prompt, name: str) -> None:
        stream = prompt.done[name] = prompt.running.pop(name)
        self._number += 1
        stream.number = self._number
        while len(prompt.done) > self._window:
            self._remove(prompt, prompt.done.popitem(last=False)[1])

    def _drop(self, dropped: Iterable[tuple[str, str]], sender: str) -> None:
        for name, id in dropped:
            prompt = self._prompts.get(name)
            if prompt is not None and id in prompt.running and prompt.running[id].sender == sender:
                self._remove(prompt, prompt.running.pop(id))

    def _answer(self, request: Request) -> Reply:
        pieces, seen, gone, left = list[Piece](), dict[str, int](), list[str](), request.most
        for name, want in request.wants.items():
            prompt = self._prompts.get(name)
            if prompt is None:
                gone += want.running
                continue
            self._prompts.move_to_end(name)
            self._forget(prompt)
            gone += [id for id in want.running if id not in prompt.running and id not in prompt.done]
            left, seen[name] = self._fill(pieces, prompt, want, request.sender, left)
        return Reply(fingerprint=request.fingerprint, exchange=self.id, pieces=pieces, seen=seen, gone=gone)

    def _fill(self, pieces: list[Piece], prompt: _Prompt, want: Want, sender: str, left: int) -> tuple[int, int]:
        """Add what is new, as far as the bytes last; return the bytes left, and which finished ones are told."""
        seen = want.seen
        for id, stream in (*prompt.done.items(), *prompt.running.items()):
            if stream.sender != sender and (not stream.number or stream.number > want.seen):
                for piece in stream.after(want.running.get(id, 0)):
                    if left <= 0:
                        return left, seen
                    pieces.append(piece)
                    left -= piece.size
            seen = max(seen, stream.number)
        return left, seen

    def _forget(self, prompt: _Prompt) -> None:
        """Let go of rollouts whose engine is gone."""
        now = self._clock()
        for id, stream in list(prompt.running.items()):
            if now - stream.touched > FORGET_SECONDS:
                self._remove(prompt, prompt.running.pop(id))

    def _make_room(self) -> None:
        while self.size > self._capacity and self._prompts:
            self.size -= self._prompts.popitem(last=False)[1].size

    def _remove(self, prompt: _Prompt, stream: _Stream) -> None:
        self._resize(prompt, -sum(piece.size for piece in stream.pieces))

    def _resize(self, prompt: _Prompt, by: int) -> None:
        prompt.size += by
        self.size += by
