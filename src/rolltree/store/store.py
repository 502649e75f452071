"""`RolloutStore`: add rollouts, read them back by prompt or in order, rebuild trees from them.

Safe to use from several threads; several processes may have the same file open. Reads of this object see everything it
was given before. Holds no trees and decides nothing about drafts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Protocol

from rolltree.errors import InvalidInputError
from rolltree.store.naming import digest_of
from rolltree.store.reader import ALL, Reader
from rolltree.store.record import Span, StoredRollout
from rolltree.store.writer import Writer
from rolltree.tokens import as_tokens
from rolltree.types import Float32Array, TokenIds


class Restorable(Protocol):
    """What `load_into` fills: the rollout cache."""

    @property
    def version(self) -> int:
        """Policy version that generates now."""

    def set_version(self, version: int) -> None:
        """Announce a newer version."""

    def restore(self, rollout: StoredRollout) -> None:
        """Put a rollout into its prompt's tree, without committing it again."""


class RolloutStore:
    """Finished rollouts in one SQLite file.

    Args:
        path: the file, made when missing; on a local disk, in a folder that exists.

    Raises:
        InvalidInputError, StoreVersionError, StoreCorruptedError, StoreError: see `rolltree.store.schema.connect`.

    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._writer = Writer(self.path)
        self._reader = Reader(self.path)
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
            key: the user's id of the prompt; None: the prompt is its own key.
            version: policy version that generated it.
            sample: which of the prompt's samples.
            logprobs: [n].
            reward: what it earned.
            context: parts [start, stop) of `token_ids` that were not generated (tool output).

        Raises:
            InvalidInputError: bad token ids or lengths, or the store is closed; nothing was added.

        """
        self.put(
            StoredRollout.of(
                prompt_token_ids, token_ids, key=key, version=version, sample=sample, logprobs=logprobs,
                reward=reward, context=context,
            )
        )  # fmt: skip

    def put(self, rollout: StoredRollout) -> None:
        """Hand over a rollout that is one already; its `id` is given anew."""
        self._writer.put(rollout)

    def flush(self) -> None:
        """Return when everything added is committed.

        Raises:
            StoreError: it could not be written; it stays in memory, and is tried again.

        """
        self._writer.flush()

    def close(self) -> None:
        """Commit and let go of the file; also done at exit. Harmless when repeated."""
        self._finalizer()

    def rollouts(
        self, prompt_token_ids: TokenIds | None = None, *, key: str | None = None, last: int | None = None
    ) -> list[StoredRollout]:
        """Rollouts of a prompt, or of a user's key whatever the prompt, or of both; oldest first.

        Args:
            prompt_token_ids: the prompt.
            key: the user's key; None: rollouts that were added without one.
            last: only the latest so many.

        Raises:
            InvalidInputError: neither a prompt nor a key.

        """
        if prompt_token_ids is None and key is None:
            raise InvalidInputError("rollouts", None, "a prompt or a key", "Iterate over the store to get all.")
        self._catch_up()
        prompt = None if prompt_token_ids is None else digest_of(as_tokens(prompt_token_ids, "prompt_token_ids"))
        return self._reader.of_prompt(prompt, key, ALL if last is None else last)

    def __iter__(self) -> Iterator[StoredRollout]:
        """All rollouts in the order in which they were added; those added meanwhile come too."""
        self._catch_up()
        return self._reader.in_order()

    def __len__(self) -> int:
        self._catch_up()
        return self._reader.count()

    def load_into(
        self, cache: Restorable, *, window: int | None = None, version: int | None = None,
        max_tokens: int | None = None,
    ) -> int:  # fmt: skip
        """Rebuild the trees of a cache, oldest rollout first, each with its version; returns how many were loaded.

        Args:
            cache: where to; a rollout that it holds already is then held twice.
            window: the latest so many of each prompt; None: all (the cache keeps as many as its own window says).
            version: the policy version that generates now. Text of a later one (a training that goes on from a
                checkpoint) counts as of this one. None: the newest in the store, or the cache's if that is newer.
            max_tokens: leave out the oldest rollouts beyond so many tokens.

        """
        self._catch_up()
        newest = max(self._reader.newest_version(), cache.version) if version is None else version
        cache.set_version(newest)
        loaded = 0
        for rollout in self._reader.latest(
            ALL if window is None else window, ALL if max_tokens is None else max_tokens
        ):
            cache.restore(rollout)
            loaded += 1
        return loaded

    @property
    def dropped(self) -> int:
        """Rollouts that were lost because the file could not be written; 0 unless a warning was logged."""
        return self._writer.dropped

    def _catch_up(self) -> None:
        if self._writer.waiting:
            self._writer.flush()

    def __enter__(self) -> RolloutStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[RolloutStore], tuple[str]]:
        """Travels to other processes as its path."""
        return RolloutStore, (str(self.path),)


def _close(writer: Writer, reader: Reader) -> None:
    writer.close()
    reader.close()
