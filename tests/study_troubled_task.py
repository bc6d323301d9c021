"""A task whose model "raises" fails, and whose model "dies" takes the process with it, as a lack of memory does."""

import os
import signal

from hf_optim.experiment.task import Preset, Primary, Size, Task, Value


class Troubled(Task):
    name = "troubled"
    title = "Trouble"
    primary = Primary("test_accuracy", True)
    models = ("raises", "dies")
    sizes = {
        "smoke": Size(
            "trouble",
            {
                m: Preset(epochs=Value(1), batch_size=Value(8), optimizer=Value({"name": "sgd"}), data=Value(m))
                for m in models
            },
        )
    }

    def data(self, preset, source):
        if preset.data.value == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("the disk\nis on fire")

    def model(self, name, preset, data):
        raise NotImplementedError

    def model_class(self, name):
        raise NotImplementedError

    def measure(self, predictions, references):
        raise NotImplementedError


TASK = Troubled()
