"""The code of one's own that a plan names."""

from __future__ import annotations

from hf_optim.core import importing
from hf_optim.study.plan.plan import Plan


def named(plan: Plan) -> list[str]:
    """The import paths of its tasks and optimizers, and of what is searched for these."""
    points = [cell["points"] for cell in plan.tuning["cells"]] if plan.tuning else []
    return importing.paths([*plan.tasks, *plan.optimizers, *points])
