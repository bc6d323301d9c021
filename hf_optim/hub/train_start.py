"""The moment at which a Trainer begins to train, for doors that are never given the trainer itself.

`transformers.Trainer.train` is wrapped once, for all trainers; whoever waits is told each trainer before it builds its
optimizer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainerCallback

from hf_optim.core.foreign import label
from hf_optim.errors import UserError
from hf_optim.hub.arguments import to_spec
from hf_optim.hub.attaching import attach
from hf_optim.hub.attachment import Attachment

_waiting: list[Callable[[Any], None]] = []


def at_train(told: Callable[[Any], None]) -> Callable[[], None]:
    """Tell `told` every trainer whose `train()` begins; gives what ends that."""
    if told not in _waiting:
        _waiting.append(told)
    _wrap_once()
    return lambda: _waiting.remove(told) if told in _waiting else None


def _wrap_once() -> None:
    original = Trainer.train
    if getattr(original, "_hf_optim", False):
        return

    @functools.wraps(original)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        for each in list(_waiting):
            each(self)
        return original(self, *args, **kwargs)

    train._hf_optim = True  # type: ignore[attr-defined]
    Trainer.train = train  # type: ignore[method-assign]


def attached(trainer: Any) -> Attachment | None:
    """The attachment of this trainer, if it has one."""
    return next((c for c in trainer.callback_handler.callbacks if isinstance(c, Attachment)), None)


class Callback(TrainerCallback):
    """`attach`, for frameworks that take nothing but callbacks: `Trainer(..., callbacks=[Callback("smaran", lr=0.1)])`.

    Args:
        name, closure, schedule, **hyper: as `hf_optim.attach` takes them.

    Raises:
        UserError: at once for an unknown rule or hyper-parameter; when training begins for what `attach` refuses, and
            for a trainer that does not begin with `transformers.Trainer.train`.
    """

    def __init__(self, name: Any, *, closure: bool | None = None, schedule: Any = None, **hyper: Any) -> None:
        self._spec = to_spec(name, hyper, settled=False)
        self._options = {"closure": closure, "schedule": schedule}
        self.attachment: Attachment | None = None
        at_train(_attach_callbacks)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.attachment is None:
            raise UserError(
                f"hf_optim.Callback({label(self._spec['name'])!r}): this trainer does not begin with "
                "transformers.Trainer.train, so nothing was attached: use hf_optim.attach or hf_optim.Session"
            )


def _attach_callbacks(trainer: Any) -> None:
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Callback) and callback.attachment is None:
            spec = dict(callback._spec)
            callback.attachment = attach(trainer, spec.pop("name"), **callback._options, **spec)
