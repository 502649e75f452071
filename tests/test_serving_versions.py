"""Where versions and conversations come from: what is said wins, several signs of one update count once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from rolltree.errors import InvalidInputError
from rolltree.serving import commands
from rolltree.serving.core import ServingCore
from rolltree.serving.request import ServedRequest
from rolltree.serving.request_options import RequestOptions
from rolltree.vllm.compat_marks import MARKS, UPDATES, marks_of
from tests.toy_host import ToyHost


class Host(ToyHost):
    """A host with conversations and salts of its own."""

    facts: Mapping[str, Any] = {}

    def _request(self, id: str) -> ServedRequest:
        return replace(super()._request(id), **self.facts)


class Run:
    """A host, and what is seen of its versions."""

    def __init__(self, *, infer: bool = True) -> None:
        self.host, self.names = Host(), iter(range(1000))
        self.core.options = replace(self.core.options, infer=infer)
        self.core.forget()

    @property
    def core(self) -> ServingCore:
        assert self.host.core is not None
        return self.host.core

    def generate(self, prompt: tuple[int, ...] = (1, 2, 3), **facts: Any) -> int:
        """Run a request to its end; return the version after that."""
        self.host.facts = facts
        self.host.add(f"r{next(self.names)}", list(prompt))
        self.host.run()
        return self.core.drafter.cache.version

    def updated(self, times: int = 1) -> None:
        """The host sees signs of a weight update."""
        for _ in range(times):
            commands.run(self.core, "updated")

    def stats(self, name: str) -> float:
        return self.core.stats()[name]


def test_signs_of_one_update_count_once() -> None:
    """Each trainer gives another number of them; those before any text, as a trainer's first sync, count as none."""
    run = Run()
    run.updated(3)
    assert run.generate() == 0
    run.updated(5)
    assert run.core.drafter.cache.version == 0  # nothing is generated yet: more signs may come
    assert [run.generate(), run.generate()] == [1, 1]
    run.updated()
    assert run.generate() == 2
    assert run.stats("inferred_versions") == 2


def test_what_is_said_wins_for_good() -> None:
    """A mark in a request, or the command; from then on signs count as nothing."""
    run = Run()
    run.generate()
    run.updated()
    assert run.generate(options=RequestOptions(version=7)) == 7
    run.updated()
    assert run.generate() == 7
    commands.run(run.core, "set_version", 9)
    run.updated()
    assert run.generate(salt=12) == 9
    with pytest.raises(InvalidInputError, match="version = 8: must be 9 or more"):
        commands.run(run.core, "set_version", 8)
    commands.run(run.core, "clear")
    assert run.generate() == 0  # as ever after `clear`
    run.updated()
    assert run.generate() == 0  # signs still count as nothing


def test_smaller_numbers_go_on_from_what_was_counted() -> None:
    """Versions only grow, and a trainer that starts to name them knows nothing of our count."""
    run = Run()
    for _ in range(4):
        run.generate()
        run.updated()
    assert run.generate() == 4
    commands.run(run.core, "set_version", 1)
    assert run.core.drafter.cache.version == 4
    assert run.generate(options=RequestOptions(version=2)) == 5
    commands.run(run.core, "set_version", 3)
    assert run.core.drafter.cache.version == 6


def test_a_salt_is_better_than_a_count() -> None:
    """And is counted as inferred; an older one, of a request that was late, takes nothing back."""
    run = Run()
    assert [run.generate(salt=3), run.generate(salt=4), run.generate(salt=3)] == [3, 4, 4]
    run.updated()
    assert run.generate() == 4
    assert run.stats("inferred_versions") == 2


def test_conversations_are_the_hosts_where_none_is_named() -> None:
    """A later turn is drafted from the tree of the first; `key` and `session` of the request come first."""
    run = Run()
    for turn in ((1, 2), (1, 2, 3, 4)):
        run.generate(turn, session="s")
    assert (run.stats("cache_prompts"), run.stats("inferred_sessions")) == (1, 2)
    run.generate((1, 2, 3, 4, 5), session="s", options=RequestOptions(session="other"))
    run.generate((1, 2, 3, 4, 6), session="s", options=RequestOptions(key="k"))
    assert (run.stats("cache_prompts"), run.stats("inferred_sessions")) == (3, 2)


def test_it_can_be_switched_off() -> None:
    """Then nothing but what is said counts."""
    run = Run(infer=False)
    run.generate()
    run.updated()
    assert run.generate(salt=5, session="s") == 0
    run.generate((1, 2, 3, 9), session="s")
    assert (run.stats("inferred_versions"), run.stats("inferred_sessions"), run.stats("cache_prompts")) == (0, 0, 2)
    assert run.generate(options=RequestOptions(version=2)) == 2


def test_which_calls_of_trainers_end_an_update() -> None:
    """Names of methods that OpenRLHF, NeMo-RL, prime-rl, SkyRL, ms-swift and ROLL call on workers, and vLLM's own."""
    yes = "update_weight update_weight_cuda_ipc update_weights_from_path update_weights_from_ipc_handles load_weights "
    yes += "reload_weights finish_weight_update update_named_param update_flattened_params broadcast_parameter"
    no = "update_weights start_weight_update init_weights_update_group get_weight rolltree sleep"
    assert [name for name in yes.split() if not UPDATES.match(name)] == []
    assert [name for name in no.split() if UPDATES.match(name)] == []


def test_marks_of_others_are_none() -> None:
    """Whatever stands where ours would."""
    for given in (None, {}, {MARKS: None}, {MARKS: 3}, {"other": 1}):
        assert marks_of(type("Sampling", (), {"extra_args": given})()) == {}
    assert marks_of(None) == {}
