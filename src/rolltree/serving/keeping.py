"""The store of a serving engine: opened once, for all caches that the engine has in its life.

Whatever is wrong with the file costs the engine its store and nothing else, and is said once, by name. Of ranks that
schedule for themselves only the leader keeps rollouts, and none reads: what a rank finds in the file depends on time,
and their trees must not differ.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from rolltree.cache import RolloutCache
from rolltree.errors import InvalidInputError, RolltreeError
from rolltree.serving.options import EngineOptions
from rolltree.tokens import as_key, as_tokens

if TYPE_CHECKING:
    from rolltree.rebuilding import Rebuilding
    from rolltree.store import RolloutStore

ALONE = (
    "each rank of this engine schedules for itself: the first one keeps finished rollouts, and trees do not come back "
    "while it runs. To begin with those of before, give the file as the option `load`, too"
)


class Keeping:
    """The store that an engine was asked to keep its rollouts in; `store` is None before `start`, and without one.

    Args:
        options: `store` and those that begin with `store_`.
        vocab: words of the model's vocabulary.
        model: its name.
        log: where lines for the user go.

    """

    def __init__(self, options: EngineOptions, *, vocab: int, model: str, log: logging.Logger) -> None:
        self.options, self.vocab, self.model, self.log = options, vocab, model, log
        self.store: RolloutStore | None = None
        self.refused = False
        """Whether the store that was asked for cannot be used."""
        self._reads = True

    def start(self, *, alone: bool, leads: bool) -> None:
        """Open the file; `alone`: this rank schedules for itself, beside others, of which one `leads`."""
        if not self.options.store or (alone and not leads):
            return
        self._reads = not alone
        try:
            self.store = self._opened()
        except RolltreeError as error:
            self.refused = True
            self.log.error("rolltree goes on without its store: %s", error)
        else:
            self.log.info("rolltree keeps finished rollouts in %s%s", self.options.store, f"; {ALONE}" if alone else "")

    def _opened(self) -> RolloutStore:
        from rolltree.store import RolloutStore  # SQLite, for those alone who have a store

        options = self.options
        store = RolloutStore(options.store, window=options.store_window, most_bytes=options.store_bytes)
        try:
            if said := store.identify(vocab=self.vocab, model=self.model):
                self.log.warning("rolltree: %s", said)
        except BaseException:
            store.close()
            raise
        return store

    def cache(self) -> RolloutCache:
        """Make a cache with empty trees."""
        when = cast("Rebuilding", self.options.store_rebuild if self._reads else "never")
        return RolloutCache(self.options.cache, store=self.store, rebuild=when)

    @property
    def gives_back(self) -> bool:
        """Whether trees come back from the store while the engine runs."""
        return self.store is not None and self._reads

    def flush(self) -> None:
        """Return when all that was kept is in the file; the writer has logged what is not."""
        if self.store is not None:
            try:
                self.store.flush()
            except RolltreeError as error:
                self.log.warning("rolltree: not everything is in the store yet: %s", error)

    def close(self) -> None:
        """Commit, and let go of the file; harmless when repeated."""
        if self.store is not None:
            self.store.close()


def expect(cache: RolloutCache, prompts: Iterable[Mapping[str, Any]], *, vocab: int) -> int:
    """See `ServingCore.expect`."""
    coming = []
    for place, fields in enumerate(prompts):
        where = f"prompts[{place}]"
        if not isinstance(fields, Mapping) or "prompt_token_ids" not in fields:
            raise InvalidInputError(where, fields, "a mapping with prompt_token_ids, and where there is one, key")
        tokens = as_tokens(fields["prompt_token_ids"], f"{where}.prompt_token_ids")
        if len(tokens) and int(tokens.max()) >= vocab:
            raise InvalidInputError(f"{where}.prompt_token_ids", int(tokens.max()), f"token ids below {vocab}")
        coming.append((tokens, as_key(fields.get("key"))))
    for tokens, key in coming:
        cache.expect(tokens, key=key)
    return len(coming)
