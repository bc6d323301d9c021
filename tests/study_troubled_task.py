"""Trainings for studies that are disturbed: one takes its time, one raises, one takes its process with it."""

import os
import signal
import sys
import time
from random import Random

import torch

import hf_optim
from hf_optim import study
from hf_optim.experiment.task import Preset, Primary, Size, Task, Value


class Troubled(Task):
    """Fails before it trains."""

    name = "troubled"
    title = "Trouble"
    primary = Primary("test_accuracy", True)
    models = ("raises",)
    sizes = {
        "smoke": Size(
            "trouble",
            {
                "raises": Preset(
                    epochs=Value(1), batch_size=Value(8), optimizer=Value({"name": "sgd"}), data=Value("none")
                )
            },
        )
    }

    def data(self, preset, source):
        raise RuntimeError("the disk\nis on fire")

    def model(self, name, preset, data):
        raise NotImplementedError

    def model_class(self, name):
        raise NotImplementedError

    def measure(self, predictions, references):
        raise NotImplementedError


TASK = Troubled()


@study.training(metric="test_loss", greater_is_better=False)
def dies(optimizer, seed):
    """As of a lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


@study.training(metric="test_loss", greater_is_better=False)
def takes_its_time(optimizer, seed, log):
    """A second, in which it can be killed; its figures hang on optimizer and seed alone. No process waits for imports
    that it has no use for.
    """
    hf_optim.create(optimizer, [torch.nn.Parameter(torch.zeros(2, 2))])
    needless = {"transformers", "torch._dynamo"} & set(sys.modules)
    assert not needless, needless
    random = Random(f"{optimizer} {seed}")
    for step in range(1, 11):
        time.sleep(0.1)
        log(step, train_loss=random.random(), validation_loss=random.random())
    return {"test_loss": random.random(), "validation_loss": random.random()}


@study.training(metric="test_loss", greater_is_better=False)
def waits(optimizer, seed, gate):
    """Seeds above 1 wait for as long as the file `gate` is there."""
    while seed > 1 and os.path.exists(gate):
        time.sleep(0.05)
    return {"test_loss": 1.0 + seed}
