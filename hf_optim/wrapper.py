"""The old place of hf_optim.bases.wrapper; it hands the names on for one release."""

from hf_optim.bases.wrapper import *  # noqa: F403
