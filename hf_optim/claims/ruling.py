"""From comparisons to a verdict: what a rule asks, and what the records answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hf_optim.claims.comparisons import Comparison, Finding, decide
from hf_optim.core.wording import counted
from hf_optim.study.statistics.paired import ALPHA, detectable

Verdict = Literal["holds", "contradicted", "partly", "undecided", "premise not met", "not tested", "not testable"]


@dataclass(frozen=True)
class Ruling:
    """What a rule finds: a verdict, why, and the comparisons behind it."""

    verdict: Verdict
    words: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Question:
    """Comparisons that must all be so for a claim to hold.

    words: what else there is to say. missing: what is not there to be compared. parts: whether each comparison is a
    claim of its own, so that some of them make it partly so; the two sides of a margin are not.
    """

    comparisons: tuple[Comparison, ...]
    words: str = ""
    missing: tuple[str, ...] = ()
    parts: bool = True


Answer = Question | Ruling


def negation(ruling: Ruling) -> Ruling:
    """The ruling on the opposite statement."""
    turned: dict[Verdict, Verdict] = {"holds": "contradicted", "contradicted": "holds", "partly": "undecided"}
    return Ruling(turned.get(ruling.verdict, ruling.verdict), f"of the opposite: {ruling.words}", ruling.findings)


def ruling(answer: Answer) -> Ruling:
    """Holds if every comparison is so, contradicted if one is not, partly if some are and the rest undecided."""
    if isinstance(answer, Ruling):
        return answer
    if answer.missing:
        return Ruling("not tested", f"no finished runs for {', '.join(answer.missing)}")
    findings = tuple(decide(answer.comparisons))
    if not any(f.pairs >= (1 if f.comparison.exact else 2) for f in findings):
        return Ruling("not tested", "too few runs to compare anything", findings)
    so, against = [f for f in findings if f.truth], [f for f in findings if f.truth is False]
    words = [*([answer.words] if answer.words else []), *_failed(findings)]
    count = f"{len(so)} of {counted(len(findings), 'comparison')} decided in favour, {len(against)} against"
    if against:
        named = "; ".join(
            f"{f.comparison.first} against {f.comparison.second} on {f.comparison.task}" for f in against[:6]
        )
        return Ruling("contradicted", "; ".join([f"{count} ({named})", *words]), findings)
    if len(so) == len(findings):
        return Ruling("holds", "; ".join([count, *words]), findings)
    seeds = max((f.pairs for f in findings), default=0)
    effect = detectable(max(2, seeds), ALPHA / len(findings))
    text = "; ".join(
        [f"{count}, the rest undecided: {counted(seeds, 'seed')} find {effect:.1f} deviations of a difference", *words]
    )
    return Ruling("partly" if so and answer.parts else "undecided", text, findings)


def _failed(findings: Sequence[Finding]) -> list[str]:
    """A sentence on each arm that has failures, once."""
    said: dict[tuple[str, str], str] = {}
    for finding in findings:
        comparison = finding.comparison
        failure = "did not arrive" if comparison.worst is not None else "failed"
        for label, count in zip((comparison.first, comparison.second), comparison.failures(), strict=True):
            if count:
                said[comparison.task, label] = (
                    f"{label} {failure} on {comparison.task} with {count} of {counted(len(comparison.pairs), 'seed')}"
                )
    return list(said.values())
