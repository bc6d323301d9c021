"""The old place of hf_optim.bases.optimizer; it hands the name on for one release."""

from hf_optim.bases.optimizer import Optimizer

__all__ = ["Optimizer"]
