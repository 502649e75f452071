"""What the vLLM part of the GPU benchmark compares: a name for each engine, and what it is started with.

A new one is a line of `CASES`. One that this version of rolltree or vLLM does not know is a row that says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rolltree.bench.verdict import BASELINE
from rolltree.bench.vllm_engines import RUNNERS
from rolltree.bench.vllm_worker import EngineSpec
from rolltree.vllm.graph_sizes import capture_sizes
from rolltree.writing import to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One engine."""

    drafter: str = "rolltree"
    runner: str = ""
    """Out of `RUNNERS`; empty: the one that vLLM takes by itself."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Of rolltree, `additional_config["rolltree"]`."""
    speculative: Mapping[str, object] = field(default_factory=dict)
    """More of vLLM's `speculative_config`."""
    graphs: str = ""
    """vLLM's `cudagraph_mode`, with sizes for all drafts of all requests; empty: left alone."""

    @property
    def lengths(self) -> bool:
        """Whether a draft length K means something to it."""
        return self.drafter in ("suffix", "rolltree")

    @property
    def coupled(self) -> bool:
        """Whether its sampled texts are those of the plain engine's V2 runner."""
        return bool(self.options.get("coupled"))

    @property
    def environment(self) -> dict[str, str]:
        """Variables of its process."""
        return {"VLLM_USE_V2_MODEL_RUNNER": RUNNERS[self.runner]} if self.runner else {}

    def spec(self, model: str, arguments: Sequence[str], *, slots: int, max_draft: int, log: str) -> EngineSpec:
        """What a worker builds."""
        own = ("--additional-config", to_json({"rolltree": dict(self.options)})) if self.options else ()
        sizes = {"cudagraph_mode": self.graphs, "cudagraph_capture_sizes": capture_sizes(slots, max_draft, 1 << 20)}
        graphs = ("--compilation-config", to_json(sizes)) if self.graphs else ()
        return EngineSpec(
            drafter=self.drafter, model=model, slots=slots, max_draft=max_draft, speculative=dict(self.speculative),
            arguments=(*arguments, *own, *graphs), log=log,
        )  # fmt: skip


CASES: dict[str, Case] = {
    BASELINE: Case(drafter=BASELINE),  # what all others are compared with
    "rolltree-v2": Case(runner="v2"),
    "rolltree-v2-host": Case(runner="v2", options={"wait": "host"}),
    "rolltree-v2-kept": Case(runner="v2", options={"graphs": "keep"}),
    "rolltree-v1": Case(runner="v1"),
    "rolltree-v2-coupled": Case(runner="v2", options={"coupled": True}),
    "rolltree-v2-ragged": Case(runner="v2", options={"lengths": "ragged"}),
    "rolltree-v2-uniform": Case(runner="v2", options={"lengths": "uniform"}),
    "rolltree-v2-adaptive": Case(runner="v2", speculative={"enable_adaptive_verification": True}),
    "rolltree-v1-coupled": Case(runner="v1", options={"coupled": True}),
    "ngram": Case(drafter="ngram"),
    "suffix": Case(drafter="suffix"),
    "suffix-wide": Case(drafter="suffix", graphs="FULL_AND_PIECEWISE"),
    "none-v1": Case(drafter=BASELINE, runner="v1"),
}
"""In the order in which they are run: a run that is cut off has the most telling ones."""
QUICK = (BASELINE, "rolltree-v1", "ngram")
"""Those that run on any CPU."""
