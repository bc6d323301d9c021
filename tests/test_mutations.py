"""The reference tests turn red when a rule is made wrong: shown for every rule, change by change."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from types import ModuleType
from typing import Any

import numpy as np
import problems
import pytest
from twins import DEFAULTS, TWINS, variants
from twins.compare import Ours, Trajectory, names, registered, trajectory
from twins.mutants import Mutant, in_force, modules_of, mutants

STEPS = 13
# A preset runs the code of the wrapper that is tested under its own name.
OURS = sorted(set(TWINS) - {n for n in TWINS if n.startswith(("tlr_", "lookahead_"))} | {"tlr_legacy"})
# All mutants take minutes: the suite runs every STRIDE-th. HF_OPTIM_MUTANTS=all runs them all.
STRIDE = 1 if os.environ.get("HF_OPTIM_MUTANTS") == "all" else 12

# Changes that nothing here can show: file, function, the beginning of the statement, the change ("" for any), and why.
FAILED = "a step that fails, of which test_wrappers has some"
BEGUN = "begun after a step, which checkpoints ask for, and else as it is read"
NONE, GUARD, RATIO = "a factor of 1 or a decay of 0 is none", "a guard that test_limits watches", "the length cancels"
EQUIVALENT = [
    ("*", "*", "if c.decay", "always True", NONE),
    ("*", "*", "if c.l2", "always True", NONE),
    ("*", "*", "return r.add_(x, alpha=c.weight_decay) if c.decay", "always r.add_", NONE),
    ("*", "*", "return {", "0 -> 1", "h.weight_decay != 0 switches off a decay of 0"),
    ("*", "_local", "", "always t", "sharded tensors have tests of their own"),
    ("*", "*", "self._settle()", "dropped", "checkpoints have tests of their own"),
    ("adafactor", "sides", "", "-1 -> 1", "with two dimensions it is the same; test_trusted has four"),
    ("ademamix", "scalars", "if progress < 1", "", "the interpolation ends at beta3"),
    ("cautious_adamw", "derive", "", "0.001 -> 0.0015", GUARD),
    ("cautious_lion", "derive", "", "0.001 -> 0.0015", GUARD),
    ("cautious_lion", "update", "x.add_(", "mul_ -> div_", "u is 1 or -1 where it counts"),
    ("muon", "route", "", "", "test_matrix has models"),
    ("muon", "matrices", "low =", "", "test_trusted and test_matrix iterate in bfloat16"),
    ("muon", "matrices", "o =", "always u.dtype", "test_trusted and test_matrix iterate in bfloat16"),
    ("muon", "scalars", "shared =", "0 -> 1", "h.weight_decay != 0 switches off a decay of 0"),
    ("muon", "orthogonal", "wide =", "", "the narrower product is the cheaper one"),
    ("nadamw", "product", "if ", "", "a shortcut"),
    ("schedule_free_sgd", "update", "d =", "always g.add", NONE),
    ("acprop", "scalars", "if not first", "always True", "the first step reads no variance"),
    ("acprop", "scalars", "return {", "1 -> 1.5", "t > 1 is t > 1.5"),
    ("adabound", "scalars", "final =", "", GUARD),
    ("decgd", "_first_value", "return first", "", "in float64 the dtype is always the parameter's"),
    ("hd_adam", "prepare", "return {", "", "before the second step there is no u"),
    ("hd_adam", "measure", "u =", "always m.div", "before the second step m is 0"),
    ("hdk", "_rescaled", "", "", GUARD),
    ("lamb", "derive", "return {'ratio'", "1.0 -> 1.5", GUARD),
    ("lookahead", "step", "if group['la_count'] == 0", "always True", "what is begun is not begun again"),
    ("lookahead", "step", "if float(group", "", GUARD),
    ("lookahead", "step", "standing", "", FAILED),
    ("lookahead", "step", "if standing", "", FAILED),
    ("lookahead", "_is_without_moments", "", "", FAILED),
    ("lookahead", "step", "if self.pullback_momentum", "", BEGUN),
    ("lookahead", "step", "self._begin_moments", "", BEGUN),
    ("lookahead", "_begin_moments", "", "", BEGUN),
    ("lookahead", "_pull_back", "if kept is None", "", BEGUN),
    ("lookahead", "_pull_back", "self._put", "", BEGUN),
    ("lookahead", "_synchronise", "if params", "always True", GUARD),
    ("lookahead", "step", "group['la_count'] =", "group['la_count'] + 1 ->", "counting down has the same period"),
    ("lookahead", "_begin", "if p.requires_grad", "", GUARD),
    ("lookahead", "_synchronise", "if slow is None", "always False", GUARD),
    ("lookahead", "_moments", "state =", "always self.state[p]", GUARD),
    (
        "prodigy",
        "_advance",
        "rates =",
        "0.0 -> 1.0",
        "twins have one group; a rate of 0 beside it is tested elsewhere",
    ),
    ("prodigy", "control", "estimate =", "1.0 -> 1.5", GUARD),
    ("sps", "control", "eta =", "1e-08 ->", GUARD),
    ("tlr", "first_change", "", "", "when a run is too short is said, and changes nothing"),
    ("tlr", "_rescaled", "if not D > ROUNDING", "min -> max", "rounding alone moves nothing on these problems"),
    ("tlr", "_rescaled", "if not 1 / self.bound", "", "it only warns"),
    ("tlr", "_rescaled", "self._tell_of_bound", "", "it only warns"),
    ("tlr", "_tell_of_bound", "", "", "it only warns"),
    ("tlr", "_snapshot", "", "", "a tensor without a scale has the scale 1, and the exact form reads no window"),
    ("tlr", "_window", "", "", "twins are given their interval; test_traps_wrappers has epochs"),
    ("tlr", "_rescaled", "if not self.guards", "", "test_traps_wrappers has a rate that guards would have kept"),
    ("tlr", "_rescaled", "return min(max(new", "1 -> 1.5", GUARD),
    ("padam", "scalars", "return {", "0.25 -> 0.375", "another way to the same power"),
    ("padam", "scalars", "return {", "0.125 -> 0.1875", "another way to the same power"),
    ("prodigy", "_make_state", "if group['slice_p'] > 1", "", "the whole tensor is its own slice"),
    ("prodigy", "_first_value", "if name == 'x0'", "always False", "the same value another way"),
    ("prodigy", "_slice", "if transform is not None", "always False", "transforms have tests of their own"),
    ("prodigy", "_control", "self._transform_sums", "dropped", "transforms have tests of their own"),
    ("prodigy", "_control", "rates =", "0.0 -> 1.0", GUARD),
    ("prodigy", "_control", "if len(rates) > 1", "1 -> 1.5", "more than 1 is more than 1.5"),
    ("prodigy", "_control", "if self.defaults['slice_p'] > 1", "1 -> 1.5", "more than 1 is more than 1.5"),
    ("prodigy", "measure", "s.mul_", "add_ -> sub_", "only |s| is read"),
    ("prodigy", "measure", "zero =", "", GUARD),
    ("prodigy", "control", "if sums['den'] == 0", "", GUARD),
    ("prodigy", "update", "if c.idle", "always False", "its rate is 0"),
    ("prodigy", "update", "if c.moved", "always True", GUARD),
    ("sls", "finish", "if accepted", "always True", GUARD),
    ("sps", "control", "eta = 0.0", "", GUARD),
    ("sps", "control", "if math.sqrt(sums['gg']) >= 1e-08", "", GUARD),
    ("sps", "control", "if eta > 0", "always True", GUARD),
    ("tlr", "_scaled_step", "if group['hf_optim_lr_scale'] != 1.0", "", NONE),
    ("tlr", "_scaled_step", "before =", "always {p: p.detach", "a copy that is not read"),
    ("tlr", "_adapt", "rate = group['tlr_rate_sum'] / K", "group['tlr_rate_sum'] / K ->", RATIO),
    ("tlr", "_look", "rate = ", "", RATIO),
    ("tlr", "_look", "u, start, end = ", "(old[p] - p) / rate ->", RATIO),
    ("tlr", "_look", "before.restore()", "dropped", "randomness has tests of its own"),
    ("tlr", "_look", "after.restore()", "dropped", "randomness has tests of its own"),
    ("tlr", "_look", "if ", "", GUARD),
    ("tlr_legacy", "_window", "if K == 0", "", "it only warns"),
    ("tlr_legacy", "_window", "once(", "dropped", "it only warns"),
    ("tlr_legacy", "_window", "return K or -1", "", "no interval, either way"),
    ("tlr_legacy", "_due", "return K > 0", "1 -> 1.5", "more than 1 is more than 1.5"),
    ("tlr_legacy", "_rescaled", "return scale if a < 0", "always scale * min", "a is a square"),
    ("tlr_legacy", "_rescaled", "return scale if a < 0", "0 -> 1", "a is above 1 on these problems"),
]


def equivalent(stem: str, mutant: Mutant) -> bool:
    return any(
        file in ("*", stem)
        and function in ("*", mutant.function)
        and mutant.line.startswith(line)
        and mutant.change.startswith(change)
        for file, function, line, change, _ in EQUIVALENT
    )


@cache
def problem(kind: str) -> problems.Problem:
    return {"lsq": problems.lsq, "tanh": problems.tanh}[kind]()


@dataclass(frozen=True)
class Comparison:
    """One variant of a name on one problem."""

    name: str
    number: int
    kind: str

    @cached_property
    def setting(self) -> tuple[list[dict[str, Any]] | None, dict[str, Any]]:
        variant = variants.VARIANTS[self.name][self.number]
        split = variants.groups(self.name, variant, len(problem(self.kind).start), DEFAULTS[self.name])
        return split, variants.hyper(variant)

    @cached_property
    def expected(self) -> Trajectory:
        split, hyper = self.setting
        return trajectory(self.name, problem(self.kind), STEPS, split, hyper)

    def ours(self) -> Ours:
        split, hyper = self.setting
        return Ours(self.name, problem(self.kind), split, **hyper)

    @cached_property
    def sound(self) -> bool:
        """Whether the rule passes it as it is: only then it can show that a change is seen."""
        return not self.fails()

    def fails(self, change: Callable[[Any], None] | None = None) -> bool:
        """Whether ours, after ``change`` has been at it, is told from its twin."""
        try:
            ours = self.ours()
            if change is not None:
                change(ours.opt)
            for k in range(1, STEPS + 1):
                ours.step(k)
                if self.expected.wrong(k, ours.arrays()):
                    return True
                rates = None if hasattr(ours.opt, "base") else self.expected.rates(k)
                if rates is not None and not np.allclose(ours.opt.effective_lr(), rates, rtol=1e-8, atol=0):
                    return True
        except Exception:  # noqa: BLE001 - an error is seen, too
            return True
        return False


@cache
def comparisons(name: str) -> list[Comparison]:
    return [*(Comparison(name, n, "tanh") for n in range(len(variants.VARIANTS[name]))), Comparison(name, 0, "lsq")]


def seen(among: list[Comparison], fails: Callable[[Comparison], bool]) -> bool:
    """Whether any comparison fails; the one that did is tried first the next time."""
    for i, comparison in enumerate(among):
        if fails(comparison):
            among.insert(0, among.pop(i))
            return True
    return False


def told(comparison: Comparison, mutant: Mutant, module: ModuleType) -> bool:
    if not comparison.sound:
        return False
    with in_force(mutant, module):
        return comparison.fails()


def need(name: str) -> None:
    registered(name, {"base": {"name": "sgd"}} if name in ("tlr", "lookahead", "hdk", "tlr_legacy") else {})


@cache
def users() -> dict[str, list[str]]:
    """Module -> the names that run its functions."""
    out: dict[str, list[str]] = {}
    for name in OURS:
        if name in names():
            for module in modules_of(comparisons(name)[0].ours().opt):
                out.setdefault(module.__name__, []).append(name)
    return out


@pytest.mark.parametrize("name", OURS)
def test_mutants_are_seen(name: str) -> None:
    """By the comparisons of the name, or of another that runs the same file; each file under one name only."""
    need(name)
    assert any(c.sound for c in comparisons(name)), "follows its twin nowhere: nothing can be said of its mutants"
    alive = []
    for module in modules_of(comparisons(name)[0].ours().opt):
        if users()[module.__name__][0] != name:
            continue
        among = [c for user in users()[module.__name__] for c in comparisons(user)]
        for mutant in mutants(module, STRIDE):
            if equivalent(module.__name__.rsplit(".", 1)[1], mutant):
                continue
            if not seen(among, partial(told, mutant=mutant, module=module)):
                alive.append(f"{module.__name__}.{mutant}")
    assert not alive, f"{len(alive)} changes go unnoticed:\n" + "\n".join(alive)


PERTURBATIONS = {
    "negated": lambda v: -v,
    "zeroed": lambda v: 0.0,
    "dropped to one": lambda v: 1.0 if v != 1 else 2.0,
    "a tenth larger": lambda v: v * 1.1,
}


@pytest.mark.parametrize("name", OURS)
def test_every_scalar_matters(name: str) -> None:
    """Each number that a rule computes for a step, made wrong, is seen."""
    need(name)
    if not hasattr(type(comparisons(name)[0].ours().opt), "scalars"):
        pytest.skip("a wrapper has no scalars of its own")
    places: dict[str, list[Comparison]] = {}
    for comparison in comparisons(name):
        noted: set[str] = set()

        def note(values: dict[str, Any], noted: set[str] = noted) -> dict[str, Any]:
            noted |= {key for key, value in values.items() if type(value) is float and value != 0}
            return values

        if not comparison.fails(lambda opt, note=note: through(opt, note)):
            for key in noted:
                places.setdefault(key, []).append(comparison)
    unseen = []
    for key, among in places.items():
        for word, perturb in PERTURBATIONS.items():

            def change(values: dict[str, Any], key: str = key, perturb: Any = perturb) -> dict[str, Any]:
                return {**values, key: perturb(values[key])} if type(values.get(key)) is float else values

            if not seen(among, lambda c, change=change: c.fails(lambda opt: through(opt, change))):
                unseen.append(f"{key} {word}")
    assert not unseen, f"unnoticed: {', '.join(unseen)}"


def through(opt: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let one instance's scalars pass through ``change``; its class keeps its name and its module."""
    cls = type(opt)

    def scalars(h: Any, t: int, s: Any) -> dict[str, Any]:
        return change(dict(cls.scalars(h, t, s)))

    opt.__class__ = type(cls.__name__, (cls,), {"scalars": staticmethod(scalars), "__module__": cls.__module__})
