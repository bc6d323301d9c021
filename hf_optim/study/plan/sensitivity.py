"""The YAML's block `sensitivity`: how much the result depends on the learning rate (Wortsman et al. 2023).

    sensitivity:
      key: lr                           # the hyper-parameter (default lr); a wrapper without it takes its base's
      values: [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]   # the grid (default: these, the paper's)
      seeds: 1                          # how many of the study's seeds (default 1)

The number is the mean over the grid of min(loss at that rate, loss before training), less the best loss on the grid;
a run that failed counts as the loss before training. It is of the validation loss at the end of training, also where
the task is judged by another metric. With tuning, the other hyper-parameters are those that were chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_optim import registry
from hf_optim.study.plan import extent
from hf_optim.study.plan.entries import PlanCell, is_setting
from hf_optim.study.plan.source import Source, Where

KEYS = ("key", "values", "seeds")
VALUES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def read(source: Source, value: Any, cells: Sequence[PlanCell], seeds: Sequence[int]) -> dict[str, Any]:
    """The block, checked; plain data for plan.json."""
    here: Where = ("sensitivity",)
    block = source.check_keys(here, value, KEYS)
    key = source.check_type((*here, "key"), block.get("key", "lr"), str, "a hyper-parameter's name")
    values = source.check_type((*here, "values"), block.get("values", list(VALUES)), list, "a list of numbers")
    for i, entry in enumerate(values):
        source.check_type((*here, "values", i), entry, (int, float), "a number")
    if len(values) < 2 or len(set(values)) < len(values):
        raise source.error((*here, "values"), "values must be at least two different numbers")
    count = source.check_type((*here, "seeds"), block.get("seeds", 1), int, "a number of seeds")
    if not 1 <= count <= len(seeds):
        raise source.error((*here, "seeds"), f"seeds must lie between 1 and the study's {len(seeds)}, got {count}")
    extent.check(source, here, len(cells), len(values), count)
    stated = {"key": key, "values": sorted(float(v) for v in values), "seeds": count}
    if not any(list(grid(stated, cell.spec)) for cell in cells):
        raise source.error((*here, "key"), f"no optimizer of this study has the hyper-parameter {key!r}")
    return stated


def rate_key(spec: Mapping[str, Any], key: str) -> str | None:
    """Where `spec` has the hyper-parameter `key`: "lr", "base.lr", or None where it has none."""
    if ":" in spec["name"]:  # whose settings only its code knows
        return key if is_setting(key) else None
    info = registry.info(spec["name"])
    if key in info.defaults or key in info.required:
        return key
    if info.family != "wrapper":
        return None
    inner = registry.inner(info, spec.get("base"))
    inner_key = None if inner is None else rate_key(inner, key)
    return None if inner_key is None else f"base.{inner_key}"


def grid(block: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The grid for an optimizer: (where it has the hyper-parameter, value); nothing if it has none."""
    place = rate_key(spec, block["key"])
    if place is not None:
        yield from ((place, value) for value in block["values"])
