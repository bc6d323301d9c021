"""The old place of hf_optim.bases.line_search; it hands the name on for one release."""

from hf_optim.bases.line_search import LineSearch

__all__ = ["LineSearch"]
