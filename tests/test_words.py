"""Plain words of the field: no private vocabulary stands in code or documentation.

The words to use are those of docs/how-it-works.md, "Words".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORDS = {
    r"apprentic": "warm-up",
    r"\blessons?\b": "samples a step",
    r"\b[Hh]ears?\b|\bheard\b": "is notified (of a token: `notify`), gets, sees",
    r"\b[Nn]ought\b": "zero",
    r"\b[Dd]ear(er|est|ly)?\b": "expensive",
    r"victor(y|ies)": "win, won race",
    r"_sown\b|\b[Ss]own\b|harvest": "credited",
    r"[Cc]lairvoyan": "oracle",
    r"\b([Kk]eeps?|[Kk]eeping) the books\b|\b[Tt]he books\b": "bookkeeping",
    r"\b[Cc]ards?\b": "summary (for a person)",
    r"\bclass (Told|Learned|Worth)\b|\b(Told|Learned|Worth)\(": "a name that says what it is: GivenCost, LearnedCost",
    r"\b[Ff]ores(ee|een|ees|aw)\b": "predict, place ahead",
    r"(?<![./\w])homes?\b(?![(-])|\b_homes?\b|\bHOMES\b": "the replica of a prompt, its place",
}


def sources() -> Iterator[Path]:
    for folder, names in (("src", "*.py *.pyi *.j2 *.yaml"), ("native", "*.h *.cpp"), ("docs", "*.md"), (".", "*.md")):
        for pattern in names.split():
            yield from (ROOT / folder).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern)


def private_words(text: str) -> list[str]:
    """Each line that holds one: its number, the word, and what to say."""
    return [
        f"{number}: {match[0]!r}: say {better}"
        for number, line in enumerate(text.splitlines(), 1)
        for word, better in WORDS.items()
        if (match := re.search(word, line))
    ]


def test_no_file_speaks_a_private_language() -> None:
    if not (ROOT / "src").exists():
        pytest.skip("there is no source tree")
    files = {str(path.relative_to(ROOT)): private_words(path.read_text()) for path in sources()}
    found = [f"{name}:{line}" for name, lines in sorted(files.items()) for line in lines]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "after its apprenticeship", "3 lessons", "a drafter hears of tokens", "all at nought", "a dear probe",
        "victories_[0]", "self._sown = 0", "what it harvested", "the clairvoyant", "keeps the books",
        "a card for a person", "Told(profile)", "class Worth:",
        "def foresee(self)", "self._homes[key]", "a new home", "HOMES = 3",
    ],
)  # fmt: skip
def test_a_planted_word_is_found(text: str) -> None:
    assert len(private_words(text)) == 1


@pytest.mark.parametrize(
    "text", ["it has learned", "is told", "worth it", "Path.home()", "home-made", "/home/me", "a discard"]
)
def test_ordinary_words_pass(text: str) -> None:
    assert private_words(text) == []
