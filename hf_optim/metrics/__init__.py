"""Metrics as `evaluate` modules that need no Hub.

Each file is a metric that `evaluate.load("path/to/hf_optim/metrics/accuracy.py")` takes, and that can be subclassed.
`load(name)` makes one without `evaluate`'s cache folders: it works offline, with a read-only home and in many
processes at once.
"""

from __future__ import annotations

import importlib
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from hf_optim.core.validate import closest
from hf_optim.errors import UserError

if TYPE_CHECKING:
    import evaluate


def names() -> list[str]:
    """The metrics of this package, sorted."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem != "__init__")


def path(name: str) -> str:
    """The file of metric `name`, for `evaluate.load`."""
    if name not in names():
        raise UserError(f"unknown metric {name!r}{closest(name, names())}: choose from {', '.join(names())}")
    return str(Path(__file__).parent / f"{name}.py")


def load(name: str) -> evaluate.Metric:
    """Metric `name`, kept in memory; use it as any `evaluate.Metric`.

    Raises:
        UserError: there is no such metric.
    """
    path(name)
    module = importlib.import_module(f"hf_optim.metrics.{name}")
    # evaluate makes a cache folder even for a metric in memory: give it one of its own, and take it away at once.
    with tempfile.TemporaryDirectory(prefix="hf-optim-metric-") as scratch:
        metric: evaluate.Metric = module.METRIC(keep_in_memory=True, cache_dir=scratch, experiment_id=uuid.uuid4().hex)
    return metric
