"""The exchange as an actor of a Ray cluster: found by its name, made by the first engine that looks, in any order.

It lives as long as the process that made it; when that is gone, or the actor was killed, the next one who looks makes
another, empty. Imports Ray when first used: this runs in a process of its own, see `child`.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from rolltree.sharing.exchange import Exchange
from rolltree.sharing.message import Reply, Request

NAMESPACE = "rolltree"


class RayChannel:
    """The way to the exchange `name` of the cluster at `address`."""

    def __init__(self, name: str, address: str) -> None:
        self._name, self._address = name, address
        self._actor: Any = None

    def trade(self, request: Request, timeout: float) -> Reply:
        """See `Channel`; an exchange that failed once is looked up anew."""
        import ray

        deadline = time.monotonic() + timeout
        self._actor = self._actor or self._find()
        try:
            reply: Reply = ray.get(self._actor.trade.remote(request), timeout=max(0.0, deadline - time.monotonic()))
        except BaseException:
            self._actor = None
            raise
        return reply

    def close(self) -> None:
        """Forget the actor, which may have other users."""
        self._actor = None

    def _find(self) -> Any:
        import ray

        if not ray.is_initialized():
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
            ray.init(address=self._address, namespace=NAMESPACE, **quiet)
        return ray.remote(Exchange).options(**exchange_options(self._name)).remote()


def exchange_options(name: str) -> dict[str, Any]:
    """Return Ray's options of the actor: one a name, no processor of its own, gone with its maker."""
    return {"name": name, "namespace": NAMESPACE, "get_if_exists": True, "num_cpus": 0}
