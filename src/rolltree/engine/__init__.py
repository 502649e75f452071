"""The built-in engine over Hugging Face causal language models: `Engine(model, config,
drafter).generate(requests)`.
"""

from rolltree.engine.config import EngineConfig
from rolltree.engine.engine import Engine
from rolltree.engine.request import FinishReason, Request, Result
from rolltree.engine.stats import EngineStats

__all__ = ["Engine", "EngineConfig", "EngineStats", "FinishReason", "Request", "Result"]
