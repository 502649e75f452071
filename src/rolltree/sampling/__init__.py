"""Sampling and verification: from logits to exact samples of the policy, with or without drafts."""

from rolltree.sampling.filters import log_probs, policy_log_probs
from rolltree.sampling.fused import sample_compiled
from rolltree.sampling.noise import ACCEPT, COUPLED, RESIDUAL, gumbel, row_keys, uniform
from rolltree.sampling.params import SamplingParams
from rolltree.sampling.rows import RowParams
from rolltree.sampling.sampler import Samples, sample
from rolltree.sampling.verification import Verified, at, verify_coupled, verify_one_hot

__all__ = [
    "ACCEPT",
    "COUPLED",
    "RESIDUAL",
    "RowParams",
    "Samples",
    "SamplingParams",
    "Verified",
    "at",
    "gumbel",
    "log_probs",
    "policy_log_probs",
    "row_keys",
    "sample",
    "sample_compiled",
    "uniform",
    "verify_coupled",
    "verify_one_hot",
]
