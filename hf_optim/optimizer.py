"""The old place of hf_optim.bases.optimizer; it hands the names on for one release."""

from hf_optim.bases.optimizer import *  # noqa: F403
