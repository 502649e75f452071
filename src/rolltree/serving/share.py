"""Opens an engine's port to other engines, and lets it work between two steps; see `rolltree.sharing`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rolltree.sharing.port import open_port

if TYPE_CHECKING:
    from rolltree.serving.core import ServingCore


def share(core: ServingCore) -> None:
    """Tell other engines of this one's rollouts, and take in some of theirs.

    Ranks that schedule each for itself do not share: what comes would come to each of them at another step, and they
    would draft differently.
    """
    if core.agreement is not None:
        core.options = replace(core.options, share="")
        core.log.error(
            "rolltree shares nothing: the ranks of this engine schedule each for itself. Leave `share` empty, and hand "
            "all of them the same rollouts by the command `add`."
        )
        return
    if core.port is None:
        options, engine = core.options, core.engine
        core.port = open_port(
            options.share, model=engine.model, vocab=engine.vocab, seconds=options.share_seconds,
            bytes_a_second=options.share_bytes, counts=core.counts, log=core.log,
        )  # fmt: skip
        core.port.follow(core.drafter.cache)
    core.port.step()
