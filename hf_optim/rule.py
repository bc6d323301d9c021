"""The old place of hf_optim.core.rule; it hands the names on for one release."""

from hf_optim.core.rule import *  # noqa: F403
