"""Drafters by name, with options: `rolltree`, `suffix:depth=64:factor=4`, `srt:draft_per_match=2`.

Options of the drafters over our cache are the fields of `CacheConfig` and `DraftConfig`; `max_draft` and `shape`
override those of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from rolltree.config import CacheConfig, DraftConfig
from rolltree.errors import InvalidInputError
from rolltree.replay.drafters.base import NoDrafter, ReplayDrafter
from rolltree.replay.drafters.option import Option
from rolltree.replay.drafters.srt import SrtDrafter
from rolltree.replay.drafters.text import NgramDrafter, SuffixDrafter
from rolltree.replay.drafters.tree import CeilingDrafter, HistoryDrafter, RolltreeDrafter

if TYPE_CHECKING:
    from rolltree.store import RolloutStore

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What every drafter is held to."""

    max_draft: int = 16
    shape: Literal["chain", "tree"] = "chain"
    capacity_bytes: int = CacheConfig().capacity_bytes
    """Of drafters over our cache: all trees, see `CacheConfig`."""


def _configs(options: Options, limits: Limits) -> tuple[CacheConfig, DraftConfig]:
    cache = {f.name for f in fields(CacheConfig)}
    options = {"capacity_bytes": limits.capacity_bytes} | dict(options)
    draft = {name: value for name, value in options.items() if name not in cache}
    return (
        CacheConfig(**{name: value for name, value in options.items() if name in cache}),
        DraftConfig(**draft, max_draft=limits.max_draft, shape=limits.shape),
    )


def _none(options: Options, limits: Limits, store: RolloutStore | None) -> ReplayDrafter:
    return NoDrafter()


def _rolltree(options: Options, limits: Limits, store: RolloutStore | None) -> ReplayDrafter:
    return RolltreeDrafter(*_configs(options, limits), store=store)


def _ngram(options: Options, limits: Limits, store: RolloutStore | None) -> ReplayDrafter:
    return NgramDrafter(max_draft=limits.max_draft, **options)


def _suffix(options: Options, limits: Limits, store: RolloutStore | None) -> ReplayDrafter:
    return SuffixDrafter(max_draft=limits.max_draft, tree=limits.shape == "tree", **options)


def _history(options: Options, limits: Limits, store: RolloutStore | None) -> ReplayDrafter:
    return HistoryDrafter(*_configs(options, limits), store=store)


def _srt(options: Options, limits: Limits, store: RolloutStore | None) -> ReplayDrafter:
    raw = {"decay": 1.0, "context_weight": 1.0, "shared_window": 0, "window": 2**31 - 1}
    rest = {name: value for name, value in options.items() if name != "draft_per_match"}
    return SrtDrafter(*_configs(raw | rest, limits), draft_per_match=options.get("draft_per_match", 1.0), store=store)


def _ceiling(options: Options, limits: Limits, store: RolloutStore | None) -> ReplayDrafter:
    shared = options.get("shared", True)
    rest = {name: value for name, value in options.items() if name != "shared"}
    return CeilingDrafter(*_configs(rest, replace(limits, shape="chain")), shared=shared, store=store)


@dataclass(frozen=True, slots=True)
class _Entry:
    make: Callable[[Options, Limits, RolloutStore | None], ReplayDrafter]
    options: Mapping[str, Option]
    claims: bool = True
    """Its survival is a claim about acceptance, so its calibration can be judged."""

    @property
    def has_cache(self) -> bool:
        """Drafts from our cache, which can have a store."""
        return "capacity_bytes" in self.options


_TREE = {
    f.name: Option(type(f.default))  # bounds are checked by the settings themselves
    for config in (CacheConfig, DraftConfig)
    for f in fields(config)
}
_WIDE = {"max_draft": Option(int, 1), "shape": Option(str, choices=("chain", "tree"))}
_SUFFIX = {
    "depth": Option(int, 1),
    "factor": Option(float, 0),
    "offset": Option(float),
    "min_prob": Option(float, 0),
    "cached": Option(int, -1),
}
_ENTRIES = {
    "none": _Entry(_none, {}, claims=False),
    "ngram": _Entry(
        _ngram, {"max_draft": _WIDE["max_draft"], "longest": Option(int, 1), "shortest": Option(int, 1)}, claims=False
    ),
    "suffix": _Entry(_suffix, _SUFFIX | _WIDE),
    "history": _Entry(_history, _TREE | _WIDE),
    "srt": _Entry(_srt, _TREE | _WIDE | {"draft_per_match": Option(float, 0)}),
    "rolltree": _Entry(_rolltree, _TREE | _WIDE),
    "ceiling": _Entry(_ceiling, _TREE | _WIDE | {"shared": Option(bool)}, claims=False),
}
DRAFTERS = tuple(_ENTRIES)


@dataclass(frozen=True, slots=True)
class DrafterSpec:
    """A drafter's name and options, checked."""

    text: str
    name: str
    options: Options

    @classmethod
    def parse(cls, text: str) -> DrafterSpec:
        """Read `name[:option=value]...`; values are numbers, true, false, or words.

        Raises:
            InvalidInputError: an unknown drafter or option.

        """
        name, *settings = text.split(":")
        if name not in _ENTRIES:
            raise InvalidInputError("--drafter", name, f"one of {', '.join(DRAFTERS)}, or all")
        allowed, options = _ENTRIES[name].options, dict[str, Any]()
        for setting in settings:
            key, found, value = setting.partition("=")
            if not found or key not in allowed:
                choice = (
                    f"option=value with an option of {', '.join(sorted(allowed))}" if allowed else "without options"
                )
                raise InvalidInputError("--drafter", text, choice)
            options[key] = allowed[key].read(text, value)
        return cls(text, name, options)

    @property
    def claims(self) -> bool:
        """The drafter's survival is a claim about acceptance, so its calibration can be judged."""
        return _ENTRIES[self.name].claims

    @property
    def has_cache(self) -> bool:
        """The drafter is one over our cache, which has a capacity and can have a store."""
        return _ENTRIES[self.name].has_cache

    def make(self, limits: Limits, store: RolloutStore | None = None) -> ReplayDrafter:
        """Return a new drafter; one over our cache keeps its rollouts in `store`, too.

        Raises:
            InvalidInputError: an option's value is not allowed.
            MissingDependencyError: the drafter needs a package that is not installed.

        """
        rest = {name: value for name, value in self.options.items() if name not in _WIDE}
        return _ENTRIES[self.name].make(rest, self.limits(limits), store)

    def limits(self, run: Limits) -> Limits:
        """Return the limits of a run as this drafter has them."""
        own = {*_WIDE, "capacity_bytes"}
        return replace(run, **{name: value for name, value in self.options.items() if name in own})


def parse_drafters(texts: Sequence[str]) -> list[DrafterSpec]:
    """Read the values of `--drafter`: names separated by commas, or all (that can run here); each once.

    Raises:
        InvalidInputError: an unknown drafter or option.

    """
    names = [name for text in texts for name in text.split(",")]
    every = [name for name in DRAFTERS if name not in ("none", "ceiling") and _installed(name)]
    return [
        DrafterSpec.parse(name)
        for name in dict.fromkeys(n for name in names for n in (every if name == "all" else [name]))
    ]


def _installed(name: str) -> bool:
    return name != "suffix" or find_spec("arctic_inference") is not None
