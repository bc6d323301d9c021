"""Regret and suboptimality of optimizers on convex problems that come one function at a time, beside the bounds.

The rate is eta / sqrt(t). Measured at T = 1, 2, 4, ...: the regret R(T) against the best fixed point of the domain in
hindsight, f of the iterates and of their mean minus the least f, and for SMARAN the bound of its Theorem 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_optim.errors import UserError, one_line
from hf_optim.toys.trajectory import RATES, label_of, prepared, takes_rate, with_rate

if TYPE_CHECKING:
    import numpy as np

    from hf_optim.toys.online import Online

#: eta where none is given and no rate is to be found: the counterexample is made for it
ETA = 1.5


#: beyond it a point has run away
FAR = 1e100


#: exponents are fitted from here on
FIRST = 64


COLUMNS = (
    "problem", "optimizer", "lr", "seed", "T", "regret", "bound", "slack", "excess_mean", "excess_of_mean",
    "excess_last", "least_gradient_squared", "radius", "G", "V", "V_high", "momentum",
)  # fmt: skip


@dataclass
class Run:
    """One optimizer on one problem and seed.

    rows: what `COLUMNS` says, at T = 1, 2, 4, ...; NaN for the bound of optimizers without one.
    momentum: the largest |m_t| (1 - gamma) / (1 - gamma^t), below 1 by Theorem 1; speeds: the least and largest V_t,
    within [0, 1) by Theorem 2; both None but for SMARAN.
    """

    label: str
    rate: float | None
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    momentum: float | None = None
    speeds: tuple[float, float] | None = None
    note: str = ""

    def column(self, name: str) -> list[float]:
        """One figure at every T."""
        return [row[name] for row in self.rows]


def theorem3(steps: int, radius: float, slope: float, rate: float, decay: float, least_speed: float) -> float:
    """The right side of Eq. 13 of the SMARAN paper after `steps` = T.

    Args:
        radius: of a ball about the origin that holds the iterates and the best point; D is its diameter.
        slope: G, a bound of every gradient's norm.
        rate: eta of eta_t = eta / sqrt(t).
        decay: lambda.
        least_speed: V, which the theorem leaves undefined: the least V_t, by which its proof may divide.
    """
    d, root = 2 * radius, math.sqrt(steps)
    if least_speed <= 0:
        return math.inf
    return (
        slope * d**2 * root / (rate * least_speed)
        + slope * decay * d**2
        + slope * rate * (slope + decay * d) ** 2 * (2 * root - 1)
    )


def follow(problem: Online, spec: Mapping[str, Any], steps: int, seed: int) -> Run:
    """`steps` steps with the rate eta / sqrt(t), measured.

    It ends early, with a note, where the point is no longer finite or a rule refuses the loss.

    Args:
        problem: see `hf_optim.tasks.data.online`.
        spec: name, hyper-parameters and base, as `hf_optim.create` takes them.
        steps: T.
        seed: of the samples drawn; the same for every optimizer.

    Raises:
        UserError: the specification is wrong.
    """
    import numpy as np
    import torch

    import hf_optim

    spec = prepared(spec)
    x = problem.start.requires_grad_(True)
    opt: Any = hf_optim.create(spec["name"], [x], **{k: v for k, v in spec.items() if k != "name"})
    if hasattr(opt, "set_steps_per_epoch"):
        opt.set_steps_per_epoch(problem.epoch)
    if not all("lr" in group for group in opt.param_groups):
        raise UserError(f"{label_of(spec)}: its groups have no lr, which is to fall as eta / sqrt(t)")
    base = [float(group["lr"]) for group in opt.param_groups]
    smaran = isinstance(opt, hf_optim.SMARAN)
    run = Run(label_of(spec), base[0] if takes_rate({k: v for k, v in spec.items() if k != "lr"}) else None, seed)
    drawn = problem.draw(steps, seed)
    points, losses = np.empty((steps, problem.dimension)), np.empty(steps)
    slopes, speeds, moments = np.empty(steps), np.full(steps, np.nan), np.zeros(steps)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = problem.loss(x, drawn[t])
        loss.backward()
        return loss

    done = steps
    for t in range(steps):
        try:
            points[t] = x.detach().numpy()
            for group, rate in zip(opt.param_groups, base, strict=True):
                group["lr"] = rate / math.sqrt(t + 1)
            losses[t] = float(torch.as_tensor(opt.step(closure)).detach())
        except UserError as error:
            done, run.note = t, f"refuses step {t + 1}: {error}"
            break
        except Exception as error:  # a class of somebody's own may raise, and give, anything
            done, run.note = t, f"fails at step {t + 1}: {one_line(error)}"
            break
        slopes[t] = float(torch.linalg.vector_norm(x.grad)) if x.grad is not None else 0.0
        if smaran:
            speeds[t], moments[t] = opt.param_groups[0]["V"], float(torch.linalg.vector_norm(opt.state[x]["m"]))
        if not float(x.detach().abs().max()) < FAR:
            done, run.note = t, f"diverged at step {t + 1}"
            break
    if smaran and done:
        gamma = opt.param_groups[0]["gamma"]
        moments[:done] /= (1 - gamma ** np.arange(1, done + 1)) / (1 - gamma)
        run.momentum = float(moments[:done].max())
        run.speeds = float(speeds[:done].min()), float(speeds[:done].max())
    given = {"eta": base[0], "decay": opt.param_groups[0]["weight_decay"]} if smaran else None
    _measure(run, problem, drawn, points[:done], losses[:done], slopes[:done], speeds[:done], moments[:done], given)
    return run


def _measure(
    run: Run, problem: Online, drawn: np.ndarray, points: np.ndarray, losses: np.ndarray, slopes: np.ndarray,
    speeds: np.ndarray, moments: np.ndarray, given: Mapping[str, float] | None,
) -> None:  # fmt: skip
    """Fill `run.rows`; `moments` are shares of Theorem 1's limit."""
    import numpy as np

    if not len(points):
        return
    values, gradients = problem.values(points)
    norms = np.linalg.norm(points, axis=1)
    middles = np.cumsum(points, axis=0)
    for exponent in range(int(math.log2(len(points))) + 1):
        steps = 2**exponent
        radius = max(float(norms[:steps].max()), 1.0)
        slope = max(float(slopes[:steps].max()), problem.slope)
        regret = float(losses[:steps].sum()) - problem.hindsight(drawn[:steps], radius)
        speed = float(speeds[:steps].min()) if given else math.nan
        bound = theorem3(steps, radius, slope, given["eta"], given["decay"], speed) if given else math.nan
        run.rows.append({
            "optimizer": run.label, "lr": run.rate, "seed": run.seed, "T": steps, "regret": regret, "bound": bound,
            "slack": bound / regret if regret > 0 else math.inf if given else math.nan,
            "excess_mean": float(values[:steps].mean()) - problem.least,
            "excess_of_mean": float(problem.values(middles[steps - 1 : steps] / steps)[0][0]) - problem.least,
            "excess_last": float(values[steps - 1]) - problem.least,
            "least_gradient_squared": float(gradients[:steps].min()) ** 2,
            "radius": radius, "G": slope, "V": speed,
            "V_high": float(speeds[:steps].max()) if given else math.nan,
            "momentum": float(moments[:steps].max()) if given else math.nan,
        })  # fmt: skip


def tuned(problem: Online, spec: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """The specification with the rate of `RATES` whose iterates have the least mean f, on a seed of its own."""
    tries = {rate: follow(problem, with_rate(spec, rate), steps, seed) for rate in RATES}
    sound = {rate: run.rows[-1]["excess_mean"] for rate, run in tries.items() if run.rows and not run.note}
    if not sound:
        raise UserError(f"optimizer {label_of(spec)}: none of the rates {', '.join(map(str, RATES))} gets through")
    return with_rate(spec, min(sound, key=lambda rate: sound[rate]))


def exponent(runs: Sequence[Run], name: str, divide: bool = False) -> tuple[float, float]:
    """The slope of log(figure) over log(T), T >= `FIRST`, fitted for each run: mean and half its 95% interval.

    The interval is Student's over seeds (NaN with one): the points of one run are not independent. With `divide` the
    figure is divided by T. NaN where a figure is not positive.
    """
    import numpy as np
    from scipy.stats import t as student

    slopes = []
    for run in runs:
        steps, values = np.array(run.column("T"), dtype=float), np.array(run.column(name))
        kept = steps >= min(FIRST, steps[-1] / 4) if len(steps) else steps > 0
        values = values / steps if divide else values
        if kept.sum() < 2 or not (values[kept] > 0).all():
            return math.nan, math.nan
        slopes.append(float(np.polyfit(np.log(steps[kept]), np.log(values[kept]), 1)[0]))
    if len(slopes) < 2:
        return (slopes[0] if slopes else math.nan), math.nan
    half = student.ppf(0.975, len(slopes) - 1) * np.std(slopes, ddof=1) / math.sqrt(len(slopes))
    return float(np.mean(slopes)), float(half)
