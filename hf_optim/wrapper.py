"""The old place of hf_optim.bases.wrapper; it hands the name on for one release."""

from hf_optim.bases.wrapper import Wrapper

__all__ = ["Wrapper"]
