"""What each source of chance contributes to the spread between runs, from the records of the block `variance`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hf_optim.study.folder.grouping import by_cell
from hf_optim.study.folder.stages import Variation
from hf_optim.study.folder.store import RecordStore, number
from hf_optim.study.plan.plan import Plan


@dataclass(frozen=True)
class Share:
    """What one source contributes: the standard deviation of the test metric over its `n` values, with its interval.

    `share` is of the variance summed over the sources; NaN until every source has two finished runs.
    """

    task: str
    optimizer: str
    source: str
    n: int
    failed: int
    sd: float
    low: float
    high: float
    share: float


def shares(plan: Plan, variations: Sequence[Variation], reader: RecordStore) -> list[Share]:
    """The sources of every optimizer on every task, from the records there are."""
    if plan.variance is None:
        return []
    measured: list[Share] = []
    cells = by_cell(variations, lambda variation: variation.run)
    for task, label, _ in plan.cells():
        if label not in plan.variance["optimizers"]:
            continue
        values: dict[str, list[float]] = {source: [] for source in plan.variance["sources"]}
        failed = dict.fromkeys(values, 0)
        for variation in cells.get((task["label"], label), ()):
            record = reader.record(variation.run.id)
            if record is None:
                continue
            value = number(record["metrics"].get(task["primary"]["name"])) if record["status"] == "ok" else math.nan
            for source in [variation.source] if variation.source else values:
                failed[source] += math.isnan(value)
                values[source] += [] if math.isnan(value) else [value]
        deviations = {s: statistics.stdev(v) if len(v) > 1 else math.nan for s, v in values.items()}
        total = math.fsum(sd * sd for sd in deviations.values())  # NaN if any of them is
        for source, sd in deviations.items():
            n = len(values[source])
            low, high = _interval(sd, n)
            share = sd * sd / total if total > 0 else math.nan
            measured.append(Share(task["label"], label, source, n, failed[source], sd, low, high, share))
    return measured


def _interval(sd: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a standard deviation of n normal values."""
    from scipy.stats import chi2

    if math.isnan(sd):
        return math.nan, math.nan
    low, high = (sd * math.sqrt((n - 1) / float(chi2.ppf(q, n - 1))) for q in (0.975, 0.025))
    return low, high
