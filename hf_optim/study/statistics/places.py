"""Which places an optimizer can have: from all pairs of a task, so that choosing the best after the fact is paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_optim.study.statistics.looks import Claim, Decision, decide
from hf_optim.study.statistics.paired import MeanDifference

Pair = tuple[str, str]


@dataclass(frozen=True)
class Places:
    """The pairs of one task, first minus second, positive where the first is better; and each one's set of places."""

    pairs: Mapping[Pair, Decision]
    sets: Mapping[str, tuple[int, int]]

    def tied_with_best(self) -> set[str]:
        """The optimizers whose set holds the first place."""
        return {label for label, (first, _) in self.sets.items() if first == 1}


def places(tasks: Sequence[Mapping[Pair, Sequence[MeanDifference]]], looks: Sequence[int]) -> list[Places]:
    """The places on every task; with 95 % all of these sets hold the true places.

    Args:
        tasks: for each task and pair of its optimizers, the mean difference at every look so far. Holm's correction is
            over all pairs of all tasks.
    """
    every = [(number, pair) for number, pairs in enumerate(tasks) for pair in pairs]
    decisions = decide([Claim(tasks[number][pair]) for number, pair in every], looks)
    placed = []
    for number, pairs in enumerate(tasks):
        mine = {pair: d for (at, pair), d in zip(every, decisions, strict=True) if at == number}
        labels = list(dict.fromkeys(label for pair in pairs for label in pair))
        known = any(d.mean.n > 1 for d in mine.values())
        above, below = dict.fromkeys(labels, 0), dict.fromkeys(labels, 0)
        for (a, b), d in mine.items():
            if d.verdict in ("better", "worse"):
                winner, loser = (a, b) if d.verdict == "better" else (b, a)
                above[loser] += 1
                below[winner] += 1
        sets = {x: (1 + above[x], len(labels) - below[x]) for x in labels} if known else {}
        placed.append(Places(mine, sets))
    return placed


def place_text(place: tuple[int, int] | None) -> str:
    """A set of places in words: "1", "2 to 5"; a dash where there is none."""
    return "–" if place is None else f"{place[0]}" if place[0] == place[1] else f"{place[0]} to {place[1]}"
