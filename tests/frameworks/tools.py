"""What the checks of all trainers ask: would an engine of these arguments draft, and what does a request say?"""

from __future__ import annotations

from typing import Any

from rolltree.demo.assets import model_folder
from rolltree.serving.request_options import RequestOptions

MODEL = str(model_folder())
WIDTH = 16
"""Of the switch, see conftest."""


def width(vllm_config: Any) -> int:
    """Draft tokens of a request and step, 0 where rolltree does not draft."""
    from rolltree.vllm import compat

    on = compat.uses_rolltree(vllm_config)
    return int(vllm_config.speculative_config.num_speculative_tokens) if on else 0


def said(sampling: Any) -> RequestOptions:
    """What a request with these parameters says to rolltree."""
    return RequestOptions.read(sampling.extra_args or {})
