"""The old place of hf_optim.core.rule; it hands the name on for one release."""

from hf_optim.core.rule import Rule, Transform

__all__ = ["Rule", "Transform"]
