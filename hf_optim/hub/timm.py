"""timm's registry: `create_optimizer_v2(model, "hf-smaran", lr=0.1)` after `hf_optim.hub.timm.register()`.

timm reads an underscore in a name as its own Lookahead, so ours are written with dashes: `hf-adamw-agr`. Its groups
(no decay for vectors, layer decay) and its schedulers act as on every optimizer of timm's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry

from hf_optim import registry
from hf_optim.errors import UserError


def register() -> list[str]:
    """Register every rule that makes do with parameters; gives their names. Wrappers need a base and are left out, and
    so are rules that must be told the loss, or when their weights are evaluated (Schedule-Free): timm's training script
    calls `optimizer.step()` with nothing, and neither `train()` nor `eval()`."""
    names = []
    for name in registry.list_optimizers():
        info = registry.info(name)
        if info.family == "wrapper" or info.needs or hasattr(registry.resolve(name), "eval"):
            continue
        names.append(f"hf-{name.replace('_', '-')}")
        default_registry.register(
            OptimInfo(
                name=names[-1],
                opt_class=_maker(name),  # type: ignore[arg-type]
                description=info.paper,
                has_eps="eps" in info.defaults,
                has_momentum=False,  # timm would overrule the rule's own with 0.9
                has_betas="betas" in info.defaults,
            )
        )
    return names


def _maker(name: str) -> Callable[..., Any]:
    info = registry.info(name)

    def make(params: Any, weight_decay: float = 0.0, **hyper: Any) -> Any:
        if "weight_decay" in info.defaults:
            return registry.create(name, params, weight_decay=weight_decay, **hyper)
        groups = [dict(group) if isinstance(group, dict) else group for group in params]
        decays = [group.pop("weight_decay", 0.0) for group in groups if isinstance(group, dict)]
        if weight_decay or any(decays):
            raise UserError(f"{name} has no weight_decay: give 0")
        return registry.create(name, groups, **hyper)

    return make
