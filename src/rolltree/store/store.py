"""`RolloutStore`: add rollouts, read them back by prompt or in order, rebuild trees from them.

Safe to use from several threads; several processes may have the same file open. Reads see everything that this object
was given before: what is not in the file yet is read from memory, so that no read waits for a write. Holds no trees and
decides nothing about drafts.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any

from rolltree.errors import InvalidInputError, StoreCorruptedError, StoreError
from rolltree.store import identity
from rolltree.store.loading import Restorable, load
from rolltree.store.location import NETWORK, as_path, is_empty, network_of
from rolltree.store.pending import PendingRollout, unwritten
from rolltree.store.reader import ALL, Damaged, StoreReader, refuse
from rolltree.store.retention import Retention
from rolltree.store.writer import Writer
from rolltree.tokens import as_integer, as_key, as_tokens, as_version, prompt_digest
from rolltree.traces.rollout import Span, StoredRollout
from rolltree.types import Float32Array, TokenIds

_log = logging.getLogger(__name__)


class RolloutStore:
    """Finished rollouts in one SQLite file.

    Args:
        path: the file; on a local disk, in a folder that exists.
        make: whether it is made when missing.
        window: latest rollouts of each prompt to keep; older ones are forgotten when the prompt is written. 0: all.
        most_bytes: of the file; the oldest rollouts are forgotten beyond it, by the thread that writes. 0: any.

    Raises:
        InvalidInputError, StoreVersionError, StoreCorruptedError, StoreError: see `rolltree.store.schema.connect`.

    All methods raise InvalidInputError when the store is closed, or in a forked child of the process that opened it;
    `close` is harmless there.

    """

    def __init__(
        self, path: str | PathLike[str], *, make: bool = True, window: int = 0, most_bytes: int = 0
    ) -> None:  # fmt: skip
        self.path, self.vocab = as_path(path), 0  # words of the vocabulary, once `identify` was called
        self._file = os.path.abspath(self.path)
        emptied = is_empty(self.path)
        window, most = as_integer(window, "store.window", 0), as_integer(most_bytes, "store.most_bytes", 0)
        self.keep = Retention(window=window, bytes=most)
        self._writer = Writer(self.path, make=make, keep=self.keep)
        if kind := network_of(self.path):
            _log.warning("%s lies on a network file system (%s): %s", self.path, kind, NETWORK)
        if emptied:
            _log.warning("%s was an empty file: a new store begins in it", self.path)
        try:
            self._reader = StoreReader(self.path)
        except BaseException:
            self._writer.close()
            raise
        self._finalizer = weakref.finalize(self, _close, self._writer, self._reader)  # also at exit

    def add(
        self, prompt_token_ids: TokenIds, token_ids: TokenIds, *, key: str | None = None, version: int = 0,
        sample: int | None = None, logprobs: Sequence[float] | Float32Array | None = None,
        reward: float | None = None, context: Sequence[Span] = (),
    ) -> None:  # fmt: skip
        """Hand over a finished rollout; a background thread commits it within a fraction of a second.

        Args:
            prompt_token_ids: the whole prompt, [p].
            token_ids: everything after it, [n].
            key: the user's id of the prompt, a string; None: the prompt is its own key.
            version: policy version that generated it.
            sample: which of the prompt's samples.
            logprobs: [n].
            reward: what it earned; NaN is none.
            context: parts [start, stop) of `token_ids` that were not generated (tool output).

        Raises:
            InvalidInputError: a value that the file cannot hold; nothing was added.

        """
        self._writer.put(
            StoredRollout.of(
                prompt_token_ids, token_ids, key=key, version=version, sample=sample, logprobs=logprobs,
                reward=reward, context=context,
            )
        )  # fmt: skip

    def put(self, rollout: StoredRollout) -> None:
        """Hand over what is a rollout already, checked again; its `id` is given anew. Errors as `add`."""
        if not isinstance(rollout, StoredRollout):
            raise InvalidInputError("rollout", rollout, "a StoredRollout", "Use add(prompt, tokens).")
        self._writer.put(rollout.checked())

    def identify(self, *, vocab: int, model: str) -> str:
        """Say whose rollouts are kept here; the file remembers it.

        Args:
            vocab: words of the model's vocabulary.
            model: its name.

        Returns:
            A sentence for the user, where the file was written for another model, or cannot be written; else empty.

        Raises:
            InvalidInputError, StoreError: the file's rollouts have ids beyond this vocabulary, or cannot be read.

        """
        before = self._writer.use(identity.known)
        said = identity.check(self.path, before, vocab, model)
        self.vocab = vocab
        if before != (vocab, model):
            try:
                self._writer.use(lambda database: identity.write(database, vocab, model))
            except StoreError as error:
                return f"Rollouts come back from the store, and none is kept in it: {error}"
        return said

    def flush(self) -> None:
        """Return when everything added is committed.

        Raises:
            StoreError: something is not safe. What could not be written stays in memory and is tried again; what was
                dropped since the last flush is lost (said once, counted in `dropped`, logged by name).

        """
        self._writer.flush()

    def close(self) -> None:
        """Commit and let go of the file; also done at exit. Harmless when repeated.

        Raises nothing for what cannot be written: that is logged and counted in `dropped`. `flush` before, to know.
        """
        self._finalizer()

    def rollouts(
        self, prompt_token_ids: TokenIds | None = None, *, key: str | None = None, last: int | None = None
    ) -> list[StoredRollout]:
        """Rollouts of a prompt, or of a user's key whatever the prompt, or of both; oldest first.

        Those that wait to be committed come last and have id 0.

        Args:
            prompt_token_ids: the prompt.
            key: the user's key; None: rollouts that were added without one.
            last: only the latest so many.

        Raises:
            InvalidInputError: neither a prompt nor a key, or not what they should be.
            StoreError: the file cannot be read.

        """
        return self._rollouts(*_named(prompt_token_ids, key), last, damaged=refuse, wait=True)

    def recall(
        self, prompt_token_ids: TokenIds | None = None, *, key: str | None = None, last: int | None = None,
        file: bool = True, damaged: Damaged = refuse,
    ) -> list[StoredRollout]:  # fmt: skip
        """The same for who must not wait: a locked file is an error at once.

        Without `file`, only what waits in memory. What is damaged goes to `damaged`, which may leave it out by not
        raising it. Errors as `rollouts`.
        """
        names = _named(prompt_token_ids, key)
        if not file:
            return _latest([entry.rollout for entry in self._writer.waiting_of(*names)], _most(last, "last"))
        return self._rollouts(*names, last, damaged=damaged, wait=False)

    def __iter__(self) -> Iterator[StoredRollout]:
        """All rollouts in the order in which they were added; those added meanwhile come too.

        The only read that lets the writer go first, so that rollouts have their ids; those that it cannot commit come
        last and have id 0.
        """
        self._writer.settle()
        return self._in_order()

    def __len__(self) -> int:
        waiting = self._writer.waiting()
        count, newest = self._reader.count()
        return count + len(unwritten(waiting, newest))

    def load_into(
        self, cache: Restorable, *, window: int | None = None, version: int | None = None,
        max_tokens: int | None = None,
    ) -> int:  # fmt: skip
        """Rebuild the trees of a cache, oldest rollout first, each with its version; returns how many were loaded.

        A damaged rollout is left out, and logged by name.

        Args:
            cache: where to; a rollout that it holds already is then held twice.
            window: the latest so many of each prompt; None: all (the cache keeps as many as its own window says).
            version: the policy version that generates now. Text of a later one (a training that goes on from a
                checkpoint) counts as of this one. None: the newest in the store, or the cache's if that is newer.
            max_tokens: leave out the oldest rollouts beyond so many tokens.

        Raises:
            InvalidInputError: a limit that is no whole number, or a version below the cache's.
            StoreError: the file cannot be read.

        """
        limits = _most(window, "window"), _most(max_tokens, "max_tokens")
        now = None if version is None else as_version(version)
        return load(self._reader, self._writer.waiting(), cache, *limits, now, _leave_out)

    @property
    def dropped(self) -> int:
        """Rollouts that were lost because they could not be written; 0 unless an error was logged."""
        return self._writer.dropped

    @property
    def forgotten(self) -> int:
        """Rollouts that this object forgot, by its limits."""
        return self._writer.forgotten

    @property
    def waiting(self) -> int:
        """Rollouts that are not in the file yet."""
        return self._writer.behind

    @property
    def commits(self) -> int:
        """Transactions of this object that succeeded."""
        return self._writer.commits

    def _rollouts(
        self, digest: bytes | None, key: str | None, last: int | None, *, damaged: Damaged, wait: bool
    ) -> list[StoredRollout]:
        most = _most(last, "last")
        waiting = self._writer.waiting_of(digest, key)
        found = self._reader.of_prompt(digest, key, most, damaged=damaged, wait=wait)
        return _latest(found + unwritten(waiting, found[-1].id if found else 0), most)

    def _in_order(self) -> Iterator[StoredRollout]:
        at, settled, seen = 0, False, list[PendingRollout]()
        while True:
            waiting, before = self._writer.waiting(), at
            given = {entry.id for entry in seen}
            for rollout in self._reader.after(at):
                at = rollout.id
                if at not in given:
                    yield rollout
            fresh = [entry for entry in waiting if entry not in seen and not 0 < entry.id <= at]
            if at > before:
                settled = False
            elif not fresh:
                return
            elif not settled:
                self._writer.settle()
                settled = True
            else:
                seen += fresh
                yield from (entry.rollout for entry in fresh)

    def __enter__(self) -> RolloutStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to other processes as its path and limits."""
        return partial(RolloutStore, window=self.keep.window, most_bytes=self.keep.bytes), (self._file,)


def _close(writer: Writer, reader: StoreReader) -> None:
    writer.close()
    reader.close()


def _named(prompt: TokenIds | None, key: str | None) -> tuple[bytes | None, str | None]:
    if prompt is None and key is None:
        raise InvalidInputError("rollouts", None, "a prompt or a key", "Iterate over the store to get all.")
    digest = None if prompt is None else prompt_digest(as_tokens(prompt, "prompt_token_ids"))
    return digest, as_key(key)


def _most(number: int | None, name: str) -> int:
    return ALL if number is None else min(as_integer(number, name, 0), ALL)


def _latest(rollouts: list[StoredRollout], most: int) -> list[StoredRollout]:
    return rollouts[max(len(rollouts) - most, 0) :]


def _leave_out(error: StoreCorruptedError) -> None:
    _log.error("Left out: %s", error)
