"""A step in a CUDA graph."""

from __future__ import annotations

from typing import Any

import torch

from hf_optim.errors import UserError


def capturing() -> bool:
    """Whether what runs now is recorded in a CUDA graph instead of being done."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def record(opt: Any) -> Any:
    raise UserError("not yet")


def renew(opt: Any, captured: Any) -> None:
    raise UserError("not yet")
