"""verl's load balancer that keeps a prompt on one replica: `rollout.router_config_path=.../rolltree/verl/router.yaml`.

verl's own sends each sample to the replica with the fewest requests, so that the samples of a prompt, and its epochs,
are spread over all trees. This one asks `placement`. It follows verl's protocol and imports nothing of it. A
conversation stays on its replica. The seam for sharing: `placement` knows which replica has a prompt's tree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.recent import Recent
from rolltree.tokens import check_whole, prompt_key
from rolltree.verl.marks import REQUEST_KEY
from rolltree.verl.placement import Placement

CONFIG_PATH = Path(__file__).with_name("router.yaml")
DEFAULT_BOUND = 1.25
NO_BOUND = 1e9
"""A replica cannot have this many times the mean: bounds from here on are none."""


class PromptRouter:
    """Routes by prompt, within a bound on the load of a replica.

    Args:
        servers: replicas by name.
        config: what verl read from the YAML file, see `settings`.

    Raises:
        InvalidInputError: a setting is unknown or outside what is allowed.
    """

    def __init__(self, servers: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> None:
        bound, slack = settings(config)
        self._servers = dict(servers)
        self.placement = Placement(self._servers, bound=bound, slack=slack)
        self._conversations: Recent[tuple[str, str]] = Recent()  # request -> server, key

    def acquire_server(
        self, request_id: str, sampling_params: Mapping[str, Any] | None = None, prompt_ids: Sequence[int] = ()
    ) -> tuple[str, Any]:
        """Return name and handle of the replica for a request."""
        if not self._servers:
            raise RuntimeError("No available servers in load balancer")  # verl's clients wait on these words
        server, key = self._conversations.get(request_id, ("", ""))
        if server in self._servers:
            self.placement.start(server, key)
        else:
            key = _key(sampling_params, prompt_ids)
            server = self.placement.place(key)
        self._conversations[request_id] = (server, key)
        return server, self._servers[server]

    def release_server(self, server_id: str, request_id: str | None = None) -> None:
        """A request has ended."""
        _, key = self._conversations.get(request_id or "", ("", None))
        self.placement.finish(server_id, key)

    def preview(self, keys: Sequence[str], requests: int) -> list[str]:
        """Return the names of the replicas that will get a batch to come, `requests` for each key."""
        return self.placement.preview(keys, requests)

    def require_acquire_fields(self) -> list[str]:
        """What verl is to send along: rolltree's key is in the sampling parameters, the prompt is the fallback."""
        return ["sampling_params", "prompt_ids"]

    def require_release_fields(self) -> list[str]:
        """What verl is to send along when a request ends."""
        return ["request_id"]

    def add_servers(self, servers: Mapping[str, Any]) -> None:
        """Replicas that came."""
        for server, handle in servers.items():
            self._servers[server] = handle
            self.placement.add(server)

    def remove_servers(self, server_ids: Sequence[str]) -> None:
        """Replicas that go."""
        for server in server_ids:
            self._servers.pop(server, None)
            self.placement.remove(server)

    def get_all_servers(self) -> list[str]:
        """Names of the replicas."""
        return list(self._servers)

    def get_inflight_count(self, server_id: str) -> int:
        """Running requests of a replica."""
        return self.placement.loads.get(server_id, 0)

    def get_total_inflight(self) -> int:
        """Running requests of all replicas."""
        return sum(self.placement.loads.values())

    def get_status(self) -> dict[str, Any]:
        """What verl shows of a balancer, and how often a prompt found its replica again."""
        return {
            "servers": dict(self.placement.loads),
            "total_inflight": self.get_total_inflight(),
            "active_servers": len(self._servers),
            "registered_handles": list(self._servers),
            "placed": self.placement.placed,
            "stayed": self.placement.stayed,
        }

    def clear_sticky_cache(self) -> dict[str, Any]:
        """Conversations may move from now on; prompts keep their replica while its load allows."""
        cleared = len(self._conversations)
        self._conversations.clear()
        return {"cleared_entries": cleared, "server_loads": dict(self.placement.loads)}


def settings(config: object) -> tuple[float, int]:
    """Read the router's YAML file: `bound` (none, null or .inf: no bound) and `slack` of `placement.Placement`.

    Raises:
        InvalidInputError: a setting is unknown or outside what is allowed.
    """
    if config is not None and not isinstance(config, Mapping):
        raise InvalidInputError("router", config, "a mapping with bound and slack")
    given = {str(name): value for name, value in (config or {}).items() if name != "router_class"}
    for name, value in given.items():
        if name not in ("bound", "slack"):
            raise InvalidInputError(f"router.{name}", value, "left out: known are bound and slack")
    slack = given.get("slack", 0)
    check_whole("router.slack", slack, 0, 2**31 - 1, "Requests a replica may always have running.")
    return _bound(given.get("bound", DEFAULT_BOUND)), slack


def _bound(value: object) -> float:
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise InvalidInputError("router.bound", value, "a number of 1 or more, or none")
    return float(value) if value < NO_BOUND else math.inf


def _key(sampling_params: Mapping[str, Any] | None, prompt_ids: Sequence[int]) -> str:
    """Return the key of the request's options, else of its prompt; a request that is not understood has its own."""
    try:
        options = ((sampling_params or {}).get("extra_args") or {}).get(REQUEST_KEY) or {}
        return str(options.get("key") or prompt_key(prompt_ids))
    except Exception:  # somebody else's idea of a request; it is routed all the same
        return repr(prompt_ids)
