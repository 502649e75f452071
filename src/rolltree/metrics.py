"""Counters that can be trusted: sums first, ratios last.

A mean of per-step ratios over-weights small steps; every ratio here is a quotient of two sums over the same steps.

A counter is one line in a class of counters, with its documentation: arithmetic, flat names, logs and Prometheus follow
from the line. A ratio is one line of `RATIOS`. In one process counters are slotted objects, cheap to add to; between
processes and in files they are mappings of flat names, which `add_up`, `minus` and `with_ratios` work on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

SOURCES = ("prompt", "own", "sibling", "history", "shared", "run_ahead")
"""Whose text a draft was copied from (shared: only the tree of all prompts has it); the native core's order."""

RATIOS = {
    "tokens_per_step": ("tokens", "row_steps"),
    "drafted_per_step": ("drafted", "row_steps"),
    "acceptance_rate": ("accepted", "drafted"),
    "tokens_per_second": ("tokens", "seconds"),
    "speedup": ("seconds_plain", "seconds"),
    "compute_bound_share": ("compute_bound_row_steps", "row_steps"),
}
"""Each ratio with the sums that it divides."""
SAVINGS = {"estimated_time_saved": ("estimated_seconds", "estimated_seconds_plain")}
"""Each share that was saved, 1 - used / plain, with these sums; negative where drafts cost time, absent where nothing
is estimated. `budget.priced_steps` has the formula of the seconds."""
DERIVED = frozenset({*RATIOS, *SAVINGS})
"""What follows from sums, and is not added up."""

MENTIONED = 0.05
"""Share of bound batches from which on a summary speaks of them."""

Self = TypeVar("Self", bound="Counters")


def ratio(part: float, whole: float) -> float:
    """Return part / whole, and 0 for an empty whole."""
    return part / whole if whole else 0.0


def ratios_of(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the ratios that these sums allow."""
    found = {name: ratio(sums[a], sums[b]) for name, (a, b) in RATIOS.items() if a in sums and b in sums}
    saved = {name: 1 - sums[a] / sums[b] for name, (a, b) in SAVINGS.items() if a in sums and sums.get(b)}
    return found | saved


def in_words(sums: Mapping[str, float]) -> str:
    """Return what drafting brings, in a sentence for whoever reads a log; empty where nothing was generated.

    With the time saved where it was measured (`seconds_plain`) or is estimated, and where batches were bound by
    compute, a second sentence.
    """
    ratios = ratios_of(sums)
    if not sums.get("row_steps") or "tokens_per_step" not in ratios:
        return ""
    said = f"Drafting brings {ratios['tokens_per_step']:.2f} tokens for each request and step in place of 1"
    if ratios.get("speedup"):
        said += f", and {_of_time(1 - 1 / ratios['speedup'])} of generating, as measured"
    elif "estimated_time_saved" in ratios:
        said += f", and {_of_time(ratios['estimated_time_saved'])} of decoding, estimated by what steps cost here"
    bound = ratios.get("compute_bound_share", 0)
    more = f" For {bound:.0%} of them batches were bound by compute and drafting off: it would not have paid."
    return f"{said}." + (more if bound >= MENTIONED else "")


def _of_time(share: float) -> str:
    return f"saves {share:.0%} of the time" if share >= 0 else f"takes {-share:.0%} more than the time"


def with_ratios(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the sums and the ratios that they allow."""
    return {**sums, **ratios_of(sums)}


def add_up(*parts: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of all parts, name by name; a name that a part lacks is 0 there."""
    return {name: sum(part.get(name, 0) for part in parts) for name in dict.fromkeys(n for part in parts for n in part)}


def minus(now: Mapping[str, float], then: Mapping[str, float]) -> dict[str, float]:
    """Return what the sums `now` have above those of `then`, a name that is new counting from 0."""
    return {name: value - then.get(name, 0) for name, value in now.items()}


def count(doc: str) -> Any:
    """Return the field of a counter; `doc` says what it counts, to users as well (Prometheus)."""
    return field(default=0, metadata={"doc": doc})


def count_by(keys: Iterable[str], doc: str) -> Any:
    """Return the field of one counter a key, a dictionary; a name `x_by_y` is flattened to `x_key`."""
    names = tuple(keys)
    return field(default_factory=lambda: dict.fromkeys(names, 0), metadata={"doc": doc, "keys": names})


def held(doc: str) -> Any:
    """Return the field of what is held now: it goes up and down, and is no sum over time."""
    return field(default=0, metadata={"doc": doc, "held": True})


@cache
def _cells(kind: Any, is_held: bool) -> tuple[tuple[str, str, str | None, str], ...]:
    """(flat name, attribute, key of a dictionary or None, documentation) of every counter of a class."""
    found: list[tuple[str, str, str | None, str]] = []
    for each in fields(kind):
        if "doc" not in each.metadata or each.metadata.get("held", False) != is_held:
            continue
        doc, keys, stem = each.metadata["doc"], each.metadata.get("keys"), each.name.partition("_by_")[0]
        if keys is None:
            found.append((each.name, each.name, None, doc))
        else:
            found += [(f"{stem}_{key.replace('-', '_')}", each.name, key, f"{doc}: {key}") for key in keys]
    return tuple(found)


def docs_of(kind: type, *, held: bool = False) -> dict[str, str]:
    """Return the documentation of a class's counters by flat name; with `held`, of what it holds now instead."""
    return {name: doc for name, _, _, doc in _cells(kind, held)}


def values_of(stats: Any, *, held: bool = False) -> dict[str, float]:
    """Return the counters of an object by flat name; with `held`, what it holds now instead."""
    return {
        name: getattr(stats, attribute) if key is None else getattr(stats, attribute)[key]
        for name, attribute, key, _ in _cells(type(stats), held)  # type: ignore[arg-type]
    }


@dataclass(slots=True, kw_only=True)
class Counters:
    """Sums over engine steps, for every host. A row step is one (request, engine step) pair.

    Whoever counts more makes a subclass with `count` and `count_by` lines.
    """

    steps: int = count("Engine steps that drafted or learned")
    row_steps: int = count("Pairs of a request and an engine step")
    tokens: int = count("Generated tokens")
    drafted: int = count("Draft tokens that were verified")
    accepted: int = count("Draft tokens that were accepted")
    estimated_seconds: float = count("Seconds of decoding steps by the step cost that was measured here; 0: not known")
    estimated_seconds_plain: float = count("Seconds that the tokens of these steps would have taken without drafts")

    def ratio(self, name: str) -> float:
        """Return one of `RATIOS`."""
        part, whole = RATIOS[name]
        return ratio(getattr(self, part), getattr(self, whole))

    @property
    def tokens_per_step(self) -> float:
        """Tokens produced per (request, engine step) pair; 1.0 without speculation."""
        return self.ratio("tokens_per_step")

    @property
    def acceptance_rate(self) -> float:
        """Share of the verified draft tokens that were accepted."""
        return self.ratio("acceptance_rate")

    def sums(self) -> dict[str, float]:
        """Return the sums under flat names."""
        return values_of(self)

    def snapshot(self) -> dict[str, float]:
        """Return sums and their ratios under flat names, ready for a logger."""
        return with_ratios(self.sums())

    @classmethod
    def of(cls: type[Self], sums: Mapping[str, float]) -> Self:
        """Return counters from flat names; what is not named is 0, what is no counter is ignored."""
        made = cls()
        for name, attribute, key, _ in _cells(cls, False):  # type: ignore[arg-type]
            if key is None:
                setattr(made, attribute, sums.get(name, 0))
            else:
                getattr(made, attribute)[key] = sums.get(name, 0)
        return made

    def since(self: Self, earlier: Counters) -> Self:
        """Return what was added after `earlier`, a copy taken before."""
        return self.of(minus(self.sums(), earlier.sums()))

    def __add__(self: Self, other: Counters) -> Self:
        """Return the sums of both."""
        return self.of(add_up(self.sums(), other.sums()))

    def copy(self: Self) -> Self:
        """Return an independent copy, for `since`."""
        return self.of(self.sums())

    def reset(self) -> None:
        """Set every sum to zero."""
        fresh = type(self)()
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))


@dataclass(slots=True, kw_only=True)
class DraftStats(Counters):
    """What a drafter counts."""

    drafted_by_source: dict[str, int] = count_by(SOURCES, "Draft tokens that were verified, by whose text they are")
    accepted_by_source: dict[str, int] = count_by(SOURCES, "Draft tokens that were accepted, by whose text they are")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a cache holds and what it did since it was made; see `values_of` for the two apart."""

    prompts: int = held("Prompts with a tree")
    sessions: int = held("Sessions that are open")
    rollouts: int = held("Rollouts in the trees")
    tokens: int = held("Tokens in the trees")
    bytes: int = held("Bytes of all trees")
    waiting_prompts: int = held("Prompts that wait for what the store knows of them")
    evicted_prompts: int = count("Trees that were evicted")
    hits: int = count("Sessions that found a tree with rollouts in it")
    opened: int = count("Sessions that were opened")
    rebuilt_prompts: int = count("Trees that were made again from the store")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """What a store and its journal did since they were opened."""

    waiting: int = held("Rollouts that are not in the store's file yet")
    commits: int = count("Transactions of the store that succeeded")
    dropped: int = count("Rollouts that were lost because the store could not write them")
    forgotten: int = count("Rollouts that left the store because of its limits")
    unread: int = count("Prompts whose history was not got, because the store could not be read")
    damaged: int = count("Stored rollouts that were left out because they are damaged")
    unfit: int = count("Stored rollouts that were left out because their token ids are not the model's")
    spoiled: int = count("Rollouts that were not stored because a part of their text was missed")
