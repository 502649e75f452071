"""Trainers that start vLLM themselves (`make frameworks-check`): with the switch on, do their own functions turn it on?

Only in the environment of that target. No training and no GPU: what a trainer asks of a card is answered by a stand-in
where it is asked before vLLM's arguments are made. Each file is one trainer; one that cannot be had here skips by name.
"""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.vllm.conftest import FAST

FOR_ALL = {
    **FAST,
    "ROLLTREE_DRAFT": "16",
    "ROLLTREE_COST": "off",
    "VLLM_PLUGINS": "rolltree",  # ms-swift's loads models that need torchvision, in every vLLM of the environment
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "UNSLOTH_ALLOW_CPU": "1",
    "UNSLOTH_IS_PRESENT": "1",
    "UNSLOTH_COMPILE_LOCATION": str(Path(tempfile.gettempdir()) / "rolltree-unsloth"),  # else it writes code here
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}


if any(find_spec(module) for module in ("swift", "openrlhf", "skyrl", "unsloth_zoo")):
    os.environ.update(FOR_ALL)
else:
    collect_ignore_glob = ["test_*.py"]
