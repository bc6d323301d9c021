"""The old place of hf_optim.bases.line_search; it hands the names on for one release."""

from hf_optim.bases.line_search import *  # noqa: F403
