"""Checks of the update itself: that it descends, equals its reference and stays sane at the edges."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hf_optim.check.candidate import Candidate, TrainingRun
from hf_optim.check.outcome import DoesNotApply, Fails, check
from hf_optim.check.problem import close, healthy, moved
from hf_optim.errors import UserError, one_line

REFERENCES = Path(__file__).with_name("references.json")
#: steps after which a reference trajectory is written down
MARKS = (1, 5, 12)


@check(
    "convex", "descends on a convex problem", "Training does not make the loss smaller even where nothing can go wrong."
)
def convex(s: Candidate) -> str:
    # a rate fitted to windows of 2 steps overshoots
    often: dict[str, Any] = {"interval": 10} if "interval" in s.hyper else {}
    walk = TrainingRun(s, s.wide, **often)
    before = walk.loss()
    after = walk.go(0, 40).loss()
    if not after < before:
        raise Fails(f"the loss went from {before:.6g} to {after:.6g} in 40 steps at its default rate")
    return f"{before:.3g} to {after:.3g} in 40 steps"


# --- the reference ---------------------------------------------------------------------------------------------------

#: shapes of the reference problem
SHAPES = ((3, 2), (2,), (1, 1))


def start() -> list[list[float]]:
    """Where reference trajectories begin, flat."""
    return [[math.sin(1.0 + 3 * i + k) for k in range(math.prod(s))] for i, s in enumerate(SHAPES)]


def slope(x: list[list[float]], t: int) -> tuple[float, list[list[float]]]:
    """The reference problem in step t = 1, 2, ...: loss 0.3 + sum c (x - y)^2 / 2 and its gradients, flat.

    y wanders, so that gradients turn against their averages, and every third c is a hundredth, so that squares of
    gradients fall below theirs: else rules that treat these differently (cautious ones, AMSGrad) would be alike.
    """
    loss, grads, scale = 0.3, [], 0.01 if t % 3 == 0 else 1.0
    for i, row in enumerate(x):
        c = [scale * (1 + 0.25 * math.sin(t + i + k)) for k in range(len(row))]
        y = [math.cos(2.0 * i + k) + 1.5 * math.sin(2.1 * t + i + k) for k in range(len(row))]
        loss += sum(a * (b - d) ** 2 / 2 for a, b, d in zip(c, row, y, strict=True))
        grads.append([a * (b - d) for a, b, d in zip(c, row, y, strict=True)])
    return loss, grads


def trajectory(s: Candidate, opt_of: Any, steps: tuple[int, ...] = MARKS) -> dict[int, list[torch.Tensor]]:
    """Flat parameters of an optimizer, made by `opt_of(params)`, after each of `steps` steps of the problem."""
    params = [
        torch.nn.Parameter(torch.tensor(v, dtype=torch.float64).view(shape))
        for v, shape in zip(start(), SHAPES, strict=True)
    ]
    opt, marked = opt_of(params), {}
    for t in range(1, max(steps) + 1):

        def closure(t: int = t) -> torch.Tensor:
            loss, grads = slope([p.detach().reshape(-1).tolist() for p in params], t)
            for p, g in zip(params, grads, strict=True):
                p.grad = torch.tensor(g, dtype=torch.float64).view_as(p)
            return torch.tensor(loss, dtype=torch.float64)

        if s.style == "closure":
            opt.step(closure)
        else:
            value = closure()
            opt.step(loss=value) if s.style == "loss" else opt.step()
        if t in steps:
            marked[t] = [p.detach().reshape(-1).clone() for p in params]
    return marked


@cache
def written() -> dict[str, Any]:
    """Name -> {step: flat parameters}, of the NumPy twins."""
    return json.loads(REFERENCES.read_text(encoding="utf-8"))["trajectories"]


@check("reference", "equals its reference", "It is another algorithm than the one whose name it bears.")
def reference(s: Candidate) -> str:
    begin = [torch.tensor(v, dtype=torch.float64) for v in start()]
    if s.reference is not None:
        other = s.reference if isinstance(s.reference, dict) else {"name": s.reference}
        twin = Candidate(other["name"], {k: v for k, v in other.items() if k != "name"})
        expected, source = trajectory(twin, twin.make), f"{twin.name}, stepped beside it"
    elif s.info is not None and s.name in written():
        expected = {
            int(t): [torch.tensor(v, dtype=torch.float64) for v in rows] for t, rows in written()[s.name].items()
        }
        source = "its twin in NumPy"
    else:
        raise DoesNotApply("no reference on file; give one with --reference")
    ours = trajectory(s, s.make)
    return [close(ours[t], expected[t], begin, 1e-8, f"after {t} steps, against {source}") for t in MARKS][-1]


# --- the edges -------------------------------------------------------------------------------------------------------


def _recovers(walk: TrainingRun, cause: str) -> None:
    if not healthy(walk.params()):
        raise Fails(f"{cause} makes parameters NaN or infinite")
    before = walk.params()
    walk.go(20, 24 + walk.candidate.idle)
    if not healthy(walk.params()):
        raise Fails(f"ordinary steps after {cause} make parameters NaN or infinite")
    if not moved(before, walk.params()):
        raise Fails(f"ordinary steps after {cause} move nothing any more")


@check("zero_grad", "a gradient of zero", "A layer without a signal for a batch destroys the weights, or ends the run.")
def zero_grad(s: Candidate) -> None:
    walk = TrainingRun(s)
    walk.step(0, twist=lambda loss: 0 * loss + loss.detach())
    _recovers(walk, "a first gradient of zero")
    walk.step(1, twist=lambda loss: 0 * loss + loss.detach())
    _recovers(walk, "a gradient of zero")


@check(
    "zero_loss", "a loss of zero", "A batch that is fitted perfectly destroys the weights or stops training for good."
)
def zero_loss(s: Candidate) -> None:
    walk = TrainingRun(s)
    for t, when in enumerate(("first ", "")):
        walk.step(t, twist=lambda loss: 1e-6 * (loss - loss.detach()))  # 0, and the small gradients beside it
        _recovers(walk, f"a {when}loss of zero")


@check(
    "nonfinite",
    "NaN and infinite gradients are seen",
    "One overflow poisons the state while the weights look healthy and nothing shows it, or leaves a step half done.",
)
def nonfinite(s: Candidate) -> str:
    seen = []
    for value in (math.nan, math.inf):
        walk = TrainingRun(s).go(0, 2)
        before = walk.params()

        def spoil(params: list[Any], value: float = value) -> None:
            grad = params[0].grad
            (grad._values() if grad.is_sparse else grad).view(-1)[0] = value

        try:
            walk.step(2, spoil=spoil)
        except (UserError, ValueError, RuntimeError, ArithmeticError) as error:
            if moved(before, walk.params()):
                raise Fails(f"a gradient of {value} raises after parameters were moved: {one_line(error)}") from None
            seen.append("raises")
            continue
        if not healthy(walk.params()):
            seen.append("shows in the weights")
            continue
        walk.go(3, 6)
        sick = sorted(
            {
                str(k)
                for p in walk.problem.params
                for k, v in walk.opt.state.get(p, {}).items()
                if isinstance(v, torch.Tensor) and v.is_floating_point() and not healthy([v])
            }
        )
        if sick and healthy(walk.params()):
            raise Fails(
                f"a gradient of {value} leaves finite weights and a state that stays non-finite ({sick[0]}), which "
                "nothing shows: asked is that such a step raises, leaves the state as it was, or shows in the weights. "
                "A sign or a clip hides it, and x.add_(m, alpha=0.0) with what it was taken of shows it (0 times NaN "
                "is NaN); a rule that shall stay as published, as our Lion, is looked after by its loop: "
                "torch.nn.utils.clip_grad_norm_(..., error_if_nonfinite=True)"
            )
        seen.append("shows later" if sick else "passes by")
    return f"NaN {seen[0]}, inf {seen[1]}"
