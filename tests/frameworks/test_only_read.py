"""Trainers of which no package can be installed here: they skip by name, with the reason."""

from __future__ import annotations

import pytest

from rolltree.cli.frameworks import FRAMEWORKS

REASONS = {
    "nemo-rl": "its package on the registry is an empty 0.0.0",
    "prime-rl": "it is not on the package registry",
    "roll": "it is not on the package registry, where that name is another project's",
}


@pytest.mark.parametrize("name", REASONS)
def test_a_trainer_that_was_only_read(name: str) -> None:
    pytest.skip(f"{FRAMEWORKS[name].name}: {REASONS[name]}")
