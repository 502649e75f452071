"""`rolltree demo`: a real GRPO run with and without speculation, side by side, on this computer."""
