"""A claim, judged on what is there: a study's records, or the tables of a command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hf_optim.claims import exhibits, power, rules, settings
from hf_optim.claims.claim import Claim
from hf_optim.claims.counterparts import Pair, pairs
from hf_optim.claims.evidence import Evidence
from hf_optim.claims.power import Outlook
from hf_optim.claims.ruling import Ruling
from hf_optim.claims.statement import Statement, concerns
from hf_optim.study.folder.results import Results


@dataclass(frozen=True)
class Judgement:
    """A statement and what was found of it."""

    statement: Statement
    ruling: Ruling


@dataclass(frozen=True)
class Outcome:
    """Everything that can be said of a claim at one size. `results` is None where no study is run."""

    claim: Claim
    size: str
    results: Results | None
    judgements: tuple[Judgement, ...]
    pairs: tuple[Pair, ...] = ()
    outlooks: tuple[Outlook, ...] = ()
    differences: tuple[str, ...] = ()
    again: str = ""


def of_study(claim: Claim, size: str, results: Results, again: str = "") -> Outcome:
    """The outcome of the records of one size."""
    setting = claim.settings[size]
    evidence = Evidence(results, setting.metrics)
    return Outcome(
        claim,
        size,
        results,
        judge(claim, evidence),
        tuple(pairs(claim, setting.cells, evidence)),
        tuple(power.outlooks(claim, size, results.plan)),
        tuple(settings.differences(claim, size, results.plan)),
        again,
    )


def of_tables(claim: Claim, size: str, folder: Path, again: str = "") -> Outcome:
    """The outcome of the tables that commands and checks left in `folder`."""
    judgements = []
    for statement in claim.judged():
        if statement.keys is None:
            judgements.append(Judgement(statement, Ruling("not testable", statement.not_testable)))
        else:
            premise = None if statement.given is None else exhibits.rule(folder, statement.given)
            judgements.append(Judgement(statement, _unmet(premise) or exhibits.rule(folder, statement.keys)))
    return Outcome(claim, size, None, tuple(judgements), again=again)


def judge(claim: Claim, evidence: Evidence) -> tuple[Judgement, ...]:
    """The ruling on each statement from a study's records; labels that the study lacks are not tested."""
    there = {optimizer["label"] for optimizer in evidence.results.plan.optimizers}
    tasks = {task["label"] for task in evidence.results.plan.tasks}
    judgements = []
    for statement in claim.judged():
        if statement.keys is None:
            judgements.append(Judgement(statement, Ruling("not testable", statement.not_testable)))
        elif absent := sorted(statement.labels() - there):
            judgements.append(Judgement(statement, Ruling("not tested", f"{', '.join(absent)} is not in this study")))
        elif not all(concerns(keys, tasks) for keys in (statement.keys, statement.given) if keys is not None):
            judgements.append(Judgement(statement, Ruling("not tested", "its tasks are not in this study")))
        else:
            premise = None if statement.given is None else rules.rule(evidence, statement.given)
            judgements.append(Judgement(statement, _unmet(premise) or rules.rule(evidence, statement.keys)))
    return tuple(judgements)


def _unmet(premise: Ruling | None) -> Ruling | None:
    """That the sentence does not speak of what was run; None if it does, or if it speaks of every run."""
    if premise is None or premise.verdict == "holds":
        return None
    if premise.verdict == "not tested":
        return Ruling("not tested", f"whether what the sentence speaks of is so is not known: {premise.words}")
    words = f"what the sentence speaks of is not found in these runs ({premise.verdict}: {premise.words})"
    return Ruling("premise not met", words, premise.findings)
