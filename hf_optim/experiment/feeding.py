"""How a run feeds trackers: their callbacks within its Trainer, apart from the run itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hf_optim.core.rewind import RandomState
from hf_optim.experiment.trackers import failed

#: Neptune would ask git about the current folder, whose `.git/config` and hooks may start programs
_MADE_WITH: dict[str, dict[str, Any]] = {"neptune": {"git_ref": False}}


class Fed(TrainerCallback):  # type: ignore[misc]
    """The callback of one tracker, which changes nothing about the run: random numbers that it draws (MLflow) or seeds
    (ClearML) are none of the run's, and where it fails, that is one line and it is fed no more.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._name, self._device = name, device
        self._callback: TrainerCallback | None = None
        self._callback = self._apart(self._made)

    def pass_on(self, event: str, *args: Any, **kwargs: Any) -> None:
        """Tells the tracker's callback of an event; what it answers is not heeded."""
        heard = getattr(self._callback, event, None)
        if heard is not None and getattr(heard, "__func__", heard) is not getattr(TrainerCallback, event):
            self._apart(lambda: heard(*args, **kwargs))

    def _made(self) -> TrainerCallback:
        if self._name == "clearml":
            # It would ask git about the folder of whatever file it takes for the run's script, read all Python there
            # for what it imports, and have the run wait for that, for minutes where an environment lies in it.
            import clearml

            clearml.Task.force_store_standalone_script()
        return INTEGRATION_TO_CALLBACK[self._name](**_MADE_WITH.get(self._name, {}))

    def _apart(self, call: Callable[[], Any]) -> Any:
        random = RandomState(self._device)
        try:
            return call()
        except Exception as error:
            self._callback = None
            failed(self._name, error)
        finally:
            random.restore()


def _passed_on(event: str) -> Callable[..., None]:
    def on_event(self: Fed, *args: Any, **kwargs: Any) -> None:
        self.pass_on(event, *args, **kwargs)

    return on_event


for _event in [name for name in dir(TrainerCallback) if name.startswith("on_")]:
    setattr(Fed, _event, _passed_on(_event))


def callbacks(names: Sequence[str], device: torch.device) -> list[Fed]:
    """One for each tracker."""
    return [Fed(name, device) for name in names]
