"""The conformance suite: what a training run does to an optimizer, tried on ours and on anybody's.

    hf_optim.check.run(["smaran", "torch.optim:*", "my_file.py:MyOptimizer"])

An optimizer of any make is taken to have `step(closure)`, parameter groups and state; whatever else it declares
(`family`, `needs`, `state_bytes`, options such as `foreach` or `compile`) is held to its word. Each check is one small
function; `hf_optim.check.registered()` lists them. A cell of the result is "pass", "fail" or "not applicable", and
says why; all cells of what could not be made or stepped say that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_optim.check.outcome import Report as Report
    from hf_optim.check.outcome import Verdict as Verdict
    from hf_optim.check.suite import registered as registered
    from hf_optim.check.suite import run as run

_PUBLIC = {"run": "suite", "registered": "suite", "Report": "outcome", "Verdict": "outcome"}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"hf_optim.check.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'hf_optim.check' has no attribute {name!r}")
