"""The old place of hf_optim.experiment.task; it hands the names on for one release."""

from hf_optim.experiment.task import *  # noqa: F403
