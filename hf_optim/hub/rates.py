"""The rate that a step used, and an optimizer's own figures, as a trainer logs them."""

from __future__ import annotations

from typing import Any

#: before the names of a rule's own figures in a log
PREFIX = "hf_optim_"


def _number(value: Any) -> float:
    return float(value.item() if hasattr(value, "item") else value)


class LoggedRates:
    """Remembers what each group's rate was going into a step.

    By the time it is logged, the scheduler has moved `lr`, and a rule may have moved its own factor for steps to come.
    """

    def __init__(self) -> None:
        self._used: list[dict[str, Any]] = []

    def remember(self, optimizer: Any) -> None:
        """Before `optimizer.step`; costs no synchronisation."""
        self._used = [
            {k: v.clone() if hasattr(v, "clone") else v for k, v in group.items() if k in ("lr", "hf_optim_lr_scale")}
            for group in optimizer.param_groups
        ]

    def scheduled(self) -> list[float]:
        """Each group's rate going into the last step, as the schedule set it."""
        return [_number(rates["lr"]) for rates in self._used]

    def effective(self, optimizer: Any) -> list[float]:
        """The effective rate of each group in the last step: schedule times the rule's own factor."""
        groups = optimizer.param_groups
        used = self._used if len(self._used) == len(groups) else [{} for _ in groups]
        now = [{k: group[k] for k in rates} for group, rates in zip(groups, used, strict=True)]
        own = getattr(optimizer, "effective_lr", None)
        try:
            for group, rates in zip(groups, used, strict=True):
                group.update(rates)
            return [_number(v) for v in (own() if own is not None else [group["lr"] for group in groups])]
        finally:
            for group, rates in zip(groups, now, strict=True):
                group.update(rates)

    def first(self, optimizer: Any) -> int:
        """The group whose rate is the optimizer's: the first that goes by the rule itself. Muon's first group is often
        one of embeddings, which go by its AdamW."""
        ways = _ways(optimizer)
        return ways.index("") if "" in ways else 0

    def figures(self, optimizer: Any) -> dict[str, float]:
        """`effective_lr`, that of what goes another way as `effective_lr_WAY` (Muon's `effective_lr_adamw`), those of
        groups that differ from the first of their way as `effective_lr_GROUP`; and `optimizer.figures()` as
        `hf_optim_NAME`: a rule's own names (loss, norm, v) are often a trainer's, too."""
        rates, ways = self.effective(optimizer), _ways(optimizer)
        rates_now = {"effective_lr": rates[self.first(optimizer)]}
        for way in dict.fromkeys(ways):
            members = [i for i, other in enumerate(ways) if other == way]
            if way:
                rates_now[f"effective_lr_{way}"] = rates[members[0]]
            if any(rates[i] != rates[members[0]] for i in members):
                rates_now.update({f"effective_lr_{i}": rates[i] for i in members[1:]})
        own = getattr(optimizer, "figures", None)
        return rates_now | {
            f"{PREFIX}{key}": _number(value) for key, value in (own() if own is not None else {}).items()
        }


def _ways(optimizer: Any) -> list[str]:
    """What each group goes by, empty for the rule itself."""
    ways = getattr(optimizer, "ways", None)
    return list(ways()) if ways is not None else ["" for _ in optimizer.param_groups]
