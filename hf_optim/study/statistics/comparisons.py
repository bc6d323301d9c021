"""One optimizer against the baseline, with everything that is said of the pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_optim.study.statistics.failures import FailureRate, FailureTest
from hf_optim.study.statistics.looks import Claim, Decision, decide, detectable_effect
from hf_optim.study.statistics.paired import NAN, Summary, mean_difference, win_rate

DECIDED = ("better", "worse", "equivalent")


@dataclass(frozen=True)
class Comparison:
    """One optimizer against the baseline, paired by unit. `difference` is optimizer minus baseline, in the metric's
    unit (for a score: in units of the tasks, positive where the optimizer is better); its interval leaves zero exactly
    where better or worse is said, and lies within the margin exactly where equivalent is. It holds singly.

    `p` and `p_equivalent` (NaN where no margin was stated) are of the look that decided, else of the last; `adjusted`
    and `adjusted_equivalent` the same after looks and family. `better` is P(optimizer beats baseline) over the pairs
    (ties count half) with its 95 % Clopper-Pearson interval. `detectable` is the true difference that the whole design
    finds with 80 % at least, at the deviation seen. `tests` is the size of its family. `reason` says why there is no
    verdict. `failures` are those of the optimizer and of the baseline, by unit (of a score, over all tasks); a failed
    run counts as the worst finished one of both.
    """

    pairs: int
    difference: Summary
    p: float
    adjusted: float
    better: float
    better_low: float
    better_high: float
    detectable: float
    verdict: str
    tests: int = 1
    margin: float = NAN
    p_equivalent: float = NAN
    adjusted_equivalent: float = NAN
    reason: str = ""
    failures: tuple[FailureRate, FailureRate] | None = None
    failure_test: FailureTest | None = None
    exploratory: tuple[str, ...] = ()
    #: whether no more units can give a verdict
    over: bool = False

    @property
    def decided(self) -> bool:
        """Whether a verdict was given."""
        return self.verdict in DECIDED

    @property
    def fails_more(self) -> str:
        """ "more often", "less often", or empty where the failures cannot be told apart."""
        if self.failure_test is None or not self.failure_test.sure or self.failures is None:
            return ""
        mine, other = self.failures
        return "more often" if mine.count * other.n > other.count * mine.n else "less often"


def comparison(
    decision: Decision, advantages: Sequence[float], looks: Sequence[int], tests: int, margin: float, greater: bool
) -> Comparison:
    """What a decision, made on advantages (positive is better), says in the metric's own direction."""
    mean, low, high = decision.mean, decision.low, decision.high
    if not greater:
        low, high = -high, -low
    difference = Summary(mean.n, (mean.value if greater else -mean.value) + 0.0, mean.sd, low, high)
    effect = detectable_effect(tuple(looks), tests)
    reason = ""
    if decision.verdict == "no verdict":
        reason = "one unit shows no spread" if mean.n == 1 else "there is nothing to compare"
        if mean.n > 1:
            reason = "every unit gave the same difference, so nothing tells how sure it is"
    return Comparison(
        mean.n, difference, decision.p, decision.adjusted, *win_rate(advantages[: mean.n]),
        effect * mean.sd, decision.verdict, tests, margin, decision.p_equivalent, decision.adjusted_equivalent, reason,
    )  # fmt: skip


def compare(
    pairs: Sequence[Sequence[tuple[float, float]]],
    greater_is_better: Sequence[bool],
    margins: Sequence[float] | None = None,
) -> list[Comparison]:
    """A family of comparisons at one look: `pairs[i]` holds (optimizer value, baseline value) for each unit that both
    finished; `margins[i]` is the smallest difference that matters, NaN where none was stated (default: none was).
    """
    stated = [NAN] * len(pairs) if margins is None else list(margins)
    advantages = [
        [a - b if up else b - a for a, b in task_pairs] for task_pairs, up in zip(pairs, greater_is_better, strict=True)
    ]  # fmt: skip
    sizes = [max((abs(v) for pair in task_pairs for v in pair), default=0.0) for task_pairs in pairs]
    means = [mean_difference(d, largest=size) for d, size in zip(advantages, sizes, strict=True)]
    claims = [Claim([mean], m) for mean, m in zip(means, stated, strict=True)]
    tests = max(1, sum(len(d) > 1 for d in advantages))
    return [
        comparison(decision, d, (max(2, len(d)),), tests, m, up)
        for decision, d, m, up in zip(decide(claims, (1,)), advantages, stated, greater_is_better, strict=True)
    ]
