"""The YAML's block `variance`: each source of chance varied alone, the others fixed (Bouthillier et al. 2021).

    variance:
      seeds: 5                                  # values of each source, from 2 (default 5)
      sources: [split, init, order, tuning]     # default: all, without tuning where the study has none
      optimizers: [adamw, SMARAN]               # by label (default: all)

`split` draws the train split anew (a bootstrap sample of it; validation and test stay), `init` the initial weights,
`order` the order of batches, `tuning` the settings and the trials' weights and batches, that is, the choice. What is
not varied has the study's first seed, or the tuning seed. A share is one source's variance of the test metric over the
sum of all; the shares of a few seeds are rough, so each standard deviation has its 95 % chi-squared interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim.core.validate import closest
from hf_optim.study.plan import extent, tuning, units
from hf_optim.study.plan.entries import PlanCell
from hf_optim.study.plan.source import Source, Where, describe

KEYS = ("seeds", "sources", "optimizers")
SEEDED = {"split": "split_seed", "init": "init_seed", "order": "order_seed"}  # the override of each source
SOURCES = (*SEEDED, tuning.SOURCE)


@dataclass(frozen=True)
class Setting:
    """One value of one source. The first, where all sources have theirs, belongs to every source: `source` is ""."""

    source: str
    seed: int
    tuning_seed: int
    overrides: Mapping[str, int]


def read(
    source: Source,
    value: Any,
    cells: Sequence[PlanCell],
    labels: Sequence[str],
    seeds: Sequence[int],
    tuned: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The block, checked; plain data for plan.json. `tuned` is the checked tuning block, if the study has one."""
    here: Where = ("variance",)
    block = source.check_keys(here, value, KEYS)
    count = source.check_type((*here, "seeds"), block.get("seeds", 5), int, "a number of seeds")
    if count < 2:
        raise source.error((*here, "seeds"), f"seeds must be at least 2, got {count}")
    extent.check(source, here, count, len(cells), len(SOURCES))
    valid = list(SOURCES if tuned else SEEDED)
    sources = _names(source, (*here, "sources"), block.get("sources", valid), SOURCES)
    if tuning.SOURCE in sources and not tuned:
        raise source.error((*here, "sources"), "tuning can only be varied in a study with a tuning: block")
    optimizers = _names(source, (*here, "optimizers"), block.get("optimizers", list(labels)), labels)
    return {
        "seeds": count,
        "sources": [s for s in SOURCES if s in sources],
        "optimizers": [label for label in labels if label in optimizers],
        "seed": seeds[0],
        "tuning_seed": tuned["seed"] if tuned else units.FIRST_TUNING_SEED,
        "judged": list(seeds),
    }


def _names(source: Source, where: Where, value: Any, valid: Sequence[str]) -> list[str]:
    given: list[str] = source.check_type(where, value, list, "a list of names")
    if not given:
        raise source.error(where, f"{where[-1]} is empty; valid: {', '.join(valid)}")
    for i, name in enumerate(given):
        if name not in valid or name in given[:i]:
            near = closest(str(name), valid)
            fault = "is given twice" if name in given[:i] else f"is none of {', '.join(valid)}{near}"
            raise source.error((*where, i), f"{where[-1]}: {describe(name)} {fault}")
    return given


def with_tuning_seeds(
    source: Source, tuned: Mapping[str, Any], block: Mapping[str, Any], cells: Sequence[PlanCell]
) -> dict[str, Any]:
    """The tuning block with the searches of the further tuning seeds."""
    extent.check(source, ("variance",), block["seeds"], len(cells), tuned["trials"])
    every_cell = list(tuned["cells"])
    known = {(cell["task"], cell["optimizer"], cell["seed"]) for cell in every_cell}  # of repetitions
    for seed in (varied.tuning_seed for varied in settings(block) if varied.source == tuning.SOURCE):
        if seed in block["judged"]:
            raise source.error(("variance",), f"the tuning seed {seed} would also be a judged seed: move tuning: seed:")
        every_cell += [
            tuning.make_cell(source, tuned, cell, tuned["space"], seed)
            for cell in cells
            if cell.optimizer in block["optimizers"] and (cell.task["label"], cell.optimizer, seed) not in known
        ]
    return {**tuned, "cells": every_cell}


def settings(block: Mapping[str, Any]) -> Iterator[Setting]:
    """The setting that all sources share, then the other values of each source."""
    first, tuned = block["seed"], block["tuning_seed"]
    common = {SEEDED["split"]: first} if "split" in block["sources"] else {}
    yield Setting("", first, tuned, common)
    for source in block["sources"]:
        for j in range(1, block["seeds"]):
            if source == tuning.SOURCE:
                yield Setting(source, first, tuned + j, common)
            else:
                yield Setting(source, first, tuned, {**common, SEEDED[source]: (first + j) % 2**32})
