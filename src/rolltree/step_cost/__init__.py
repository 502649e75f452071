"""Learns the step-cost model from the steps that an engine runs anyway.

O(1) work and bounded memory per observation; no clock, no randomness: the same observations give the same model. Knows
neither engine nor drafter. `CostModel.fit` fits a designed experiment; this fits what happens to come by.
"""

from rolltree.step_cost.observer import PRIOR, StepCostObserver

__all__ = ["PRIOR", "StepCostObserver"]
