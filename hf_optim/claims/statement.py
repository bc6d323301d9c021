"""A statement of a claim file: the paper's own sentence, how it is read, and the rule that judges it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_optim.claims import exhibits, rules
from hf_optim.core.shape import Each
from hf_optim.core.validate import closest
from hf_optim.study.plan.source import Source, Where

OWN = ("says", "section", "reading", "rule", "negated", "not_testable", "effect", "given")
LABELS = ("optimizer", "baseline", "optimizers")
MOST_WORDS = 60
AS_PRINTED, AS_RUN = "as printed", "as run"
#: what the keys of the rules hold
SHAPES: dict[str, Any] = {
    "rule": str, "negated": bool, "of": [dict], "optimizer": str, "baseline": (str, [str]), "optimizers": [str],
    "reference": str, "tasks": [str], "metric": str, "greater": bool, "by": float, "margin": float, "relative": bool,
    "factor": float, "target": float, "share": float, "key": str, "low": float, "high": float, "file": str,
    "where": Each((str, float, bool, [str])), "left": (str, float), "right": (str, float), "tolerance": float,
    "strict": bool, "column": str, "exponent": float, "over": str, "start": float, "units": str,
}  # fmt: skip
#: rules that speak of all of their tasks at once, and of nothing where one is missing
WHOLE = ("degrades", "degrades_less", "better_on_average")
#: rules that have one baseline
ONE_BASELINE = ("at_most", "steadier", "degrades_less")


@dataclass(frozen=True)
class Statement:
    """One judged sentence.

    says: the paper's words. section: where they stand. reading: what of them is judged, where the words do not say.
    keys: the rule and its keys; None where the statement cannot be tested, with the reason. effect: the published
    difference in the unit of the metric of the records, where the paper prints one. variant: which reading of the
    algorithm the optimizers are ("as printed", "as run"). given: a rule that has to hold, or the sentence does not
    speak of what was run.
    """

    says: str
    section: str
    reading: str
    keys: Mapping[str, Any] | None
    not_testable: str = ""
    effect: float | None = None
    variant: str = ""
    given: Mapping[str, Any] | None = None

    @property
    def rule(self) -> str:
        """The rule's name; "-" without one."""
        return "-" if self.keys is None else str(self.keys["rule"])

    def labels(self) -> set[str]:
        """The optimizers that the rule names."""
        return {label for keys in (self.keys, self.given) if keys is not None for label in _labels(keys)}

    def on_tables(self) -> bool:
        """Whether a table of a command or of a check judges it, and not a study's records."""
        return self.rule in exhibits.RULES

    def noiseless(self) -> str:
        """What a verdict without noise rests on, to be said beside it; empty where seeds judge."""
        if self.keys is not None and self.keys.get("metric") in rules.COUNTED:
            return "counted, the same with every seed: no noise, no interval"
        return exhibits.NOISELESS.get(self.rule, "")

    def under(self, variant: str, exchange: Mapping[str, str]) -> Statement:
        """The same statement of other optimizers."""
        assert self.keys is not None
        given = None if self.given is None else _exchanged(self.given, exchange)
        return replace(self, keys=_exchanged(self.keys, exchange), variant=variant, given=given)


def read(source: Source, where: Where, value: Any) -> Statement:
    """The statement at `where`; a UserError with file and line for what is wrong in it."""
    source.check_type(where, value, dict, "a mapping with says, section and rule")
    for key in ("says", "section"):
        if key not in value:
            raise source.error(where, f"the key {key!r} is missing")
        source.check_type((*where, key), value[key], str, "a text")
    if len(value["says"].split()) > MOST_WORDS:
        raise source.error((*where, "says"), f"says is a short quotation: at most {MOST_WORDS} words")
    if ("rule" in value) == ("not_testable" in value):
        raise source.error(where, "give either a rule or not_testable with the reason")
    effect = value.get("effect")
    if effect is not None:
        source.check_shape((*where, "effect"), effect, float)
    common = (value["says"], value["section"], str(value.get("reading", "")))
    if "not_testable" in value:
        source.check_keys(where, value, ("says", "section", "reading", "not_testable"))
        return Statement(*common, None, str(value["not_testable"]))
    check_rule(source, where, value, OWN)
    given = value.get("given")
    if given is not None:
        check_rule(source, (*where, "given"), given)
        if (value["rule"] in exhibits.RULES) != (given["rule"] in exhibits.RULES):
            raise source.error((*where, "given"), "given and the rule read the same: a study's records, or tables")
    own = ("says", "section", "reading", "effect", "given")
    return Statement(*common, {k: v for k, v in value.items() if k not in own}, effect=effect, given=given)


def check_rule(source: Source, where: Where, value: Any, own: tuple[str, ...] = ("rule", "negated")) -> None:
    """Raise a UserError unless the mapping's rule exists and has its keys."""
    known = {**rules.RULES, **exhibits.RULES}
    source.check_type(where, value, dict, "a mapping with a rule")
    name = value.get("rule")
    if not isinstance(name, str) or name not in known:
        near = closest(str(name), known)
        raise source.error((*where, "rule"), f"unknown rule {name!r}{near}; valid: {', '.join(known)}")
    _, required, optional = known[name]
    source.check_keys(where, value, (*own, *required, *optional), ("rule", *required))
    for key in value.keys() & SHAPES.keys():
        one_alone = key == "baseline" and name in ONE_BASELINE
        source.check_shape((*where, key), value[key], str if one_alone else SHAPES[key])
        if isinstance(value[key], list):
            _check_list(source, (*where, key), value[key])
    if "share" in value and not value["share"] > 0:
        raise source.error((*where, "share"), f"share must be above 0, got {value['share']:g}")
    if name == "throughout" and not 0 <= value.get("start", 0) < 1:
        raise source.error((*where, "start"), f"start is a share of the training from 0 to 1, got {value['start']:g}")
    if name == "sooner" and ("target" in value) == ("share" in value):
        raise source.error(where, "sooner needs either a target or a share")
    if name == "bounded" and not value.keys() & {"low", "high"}:
        raise source.error(where, "bounded needs low, high or both")
    if name == "all":
        for i, part in enumerate(value["of"]):
            if str(part.get("rule")) in exhibits.RULES:
                raise source.error((*where, "of", i), f"{part['rule']} reads a table, and is no part of a study's rule")
            if part.get("rule") == "all":
                raise source.error((*where, "of", i), "all is no part of all: give its parts instead")
            check_rule(source, (*where, "of", i), part)


def _check_list(source: Source, where: Where, value: list[Any]) -> None:
    """Raise a UserError for a list of nothing, or of a name twice."""
    if not value:
        raise source.error(where, f"{where[-1]} is empty: name at least one")
    names = [name for name in value if isinstance(name, str)]
    if len(names) > len(set(names)):
        raise source.error(where, f"{where[-1]} names one twice")


def concerns(keys: Mapping[str, Any], tasks: set[str]) -> bool:
    """Whether the tasks that a rule cannot do without are among these."""
    for part in keys.get("of") or [keys]:
        named = set(part.get("tasks") or tasks)
        if part["rule"] in WHOLE:
            reference = {part["reference"]} if "reference" in part else set()
            if not named | reference <= tasks:
                return False
        elif not named & tasks:
            return False
    return True


def _labels(keys: Mapping[str, Any]) -> Iterator[str]:
    if keys["rule"] in exhibits.RULES:
        return
    for key in LABELS:
        named = keys.get(key, [])
        yield from [named] if isinstance(named, str) else named
    for part in keys.get("of", []):
        yield from _labels(part)


def _exchanged(keys: Mapping[str, Any], exchange: Mapping[str, str]) -> dict[str, Any]:
    swapped = dict(keys)
    for key in LABELS:
        named = keys.get(key)
        if isinstance(named, str):
            swapped[key] = exchange.get(named, named)
        elif named is not None:
            swapped[key] = [exchange.get(label, label) for label in named]
    if "of" in keys:
        swapped["of"] = [_exchanged(part, exchange) for part in keys["of"]]
    return swapped
