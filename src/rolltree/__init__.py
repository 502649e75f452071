"""rolltree: faster RL rollouts, unchanged samples."""

__version__ = "0.1.0"
