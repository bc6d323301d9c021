"""The old place of hf_optim.experiment.task and .training; it hands the names on for one release."""

from hf_optim.experiment.spec import OVERRIDES, SIZES, RunSpec
from hf_optim.experiment.task import Data, Moment, Preset, Primary, Size, Task, Value, load
from hf_optim.experiment.training import train

__all__ = [
    "OVERRIDES", "SIZES", "Data", "Moment", "Preset", "Primary", "RunSpec", "Size", "Task", "Value", "load", "train",
]  # fmt: skip
