"""Places of requests among their like: never one twice, whatever is forgotten."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rolltree.serving.places import Places


@pytest.mark.parametrize("capacity", [1, 3, 8, 100])
def test_no_place_is_given_twice(capacity: int) -> None:
    """Whatever is forgotten, also of versions that come late; with room for all, places count from 0."""
    rng = random.Random(capacity)
    places, seen = Places(capacity), set[tuple[int, bytes, int]]()
    version = 0
    for _ in range(3000):
        version += rng.random() < 0.02
        of, name = max(0, version - rng.choice([0, 0, 0, 1, 2])), bytes([rng.randrange(10)])
        place = of, name, places.take(of, name)
        assert place not in seen
        seen.add(place)
    assert len(places._next) <= capacity
    if capacity == 100:
        ends = Counter((of, name) for of, name, _ in seen)
        newest = [key for key in ends if key[0] == version]
        assert all((version, name, n) in seen for _, name in newest for n in range(ends[version, name]))


def test_places_of_a_version_do_not_depend_on_what_earlier_ones_had() -> None:
    """Forgetting moves the places of later requests of a version only where it has more names than are remembered."""
    places = Places(4)
    assert [places.take(1, bytes([n % 6])) for n in range(12)][:6] == [0] * 5 + [1]
    assert [places.take(2, bytes([n % 4])) for n in range(8)] == [0] * 4 + [1] * 4
