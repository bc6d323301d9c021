"""Doors two and three: any optimizer in an unmodified Hugging Face Trainer, or in an Accelerate loop.

`attach(trainer, "smaran", gamma=0.9)` is the one line for a Trainer, `Session(accelerator, optimizer)` the same for a
loop of one's own, and `factory("adamw_agr")` what `Trainer(optimizer_cls_and_kwargs=...)` takes. Importing this
package imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_optim.hub.attaching import attach
    from hf_optim.hub.attachment import Attachment
    from hf_optim.hub.factories import factory
    from hf_optim.hub.monitor import Monitor
    from hf_optim.hub.session import Session
    from hf_optim.hub.train_start import Callback

__all__ = ["Attachment", "Callback", "Monitor", "Session", "attach", "factory"]

_HOME = {
    "attach": "attaching",
    "Attachment": "attachment",
    "Callback": "train_start",
    "factory": "factories",
    "Monitor": "monitor",
    "Session": "session",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from hf_optim.core import extras

    with extras.needed(f"hf_optim.{name}", "hf"):
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
