"""Tuned studies whose runs are resampled from the bank of real runs, for the calibration of verdicts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from calibration_cells import Array, Cell, Simulated, better, told_apart
from numpy.typing import NDArray

from hf_optim.study.plan.plan import Plan, Run
from hf_optim.study.plan.tuning_points import draw
from hf_optim.study.statistics.looks import detectable_effect

BANK = Path(__file__).with_name("calibration_bank.npz")


class Bank:
    """The real runs, as shares of correct answers; see `calibration_bank`."""

    def __init__(self) -> None:
        kept = np.load(BANK)
        self.test = kept["counts"][..., 1] / kept["sizes"][1]
        self.validation = kept["counts"][..., 0] / kept["sizes"][0]
        self.samples = int(kept["sizes"][1])
        self.rates = np.logspace(-4, 0, self.test.shape[1])
        self.seeds = self.test.shape[2]

    def repetitions(self, kinds: Sequence[int], inert: bool, draws: int = 300, shuffles: int = 130) -> Array:
        """(draws x shuffles, optimizers) test values of repetitions: the best of eight rates on the validation of a
        tuning seed, judged on two others; the seeds are shared by the optimizers. The rates are the shipped ones of so
        many tuning seeds; with `inert` the second optimizer has a dimension more, and so rates of its own.
        """
        rng = np.random.default_rng(len(kinds))
        seeds = rng.random((draws * shuffles, self.seeds)).argsort(1)[:, :3]
        means = []
        for i, kind in enumerate(kinds):
            rates = np.repeat(place(drawn_rates(inert and i > 0, draws), len(self.rates)), shuffles, axis=0)
            chosen = rates[np.arange(len(rates)), self.validation[kind][rates, seeds[:, :1]].argmax(1)]
            means.append(self.test[kind][chosen[:, None], seeds[:, 1:]].mean(1))
        return np.stack(means, axis=1)


@functools.cache
def drawn_rates(inert: bool, draws: int) -> Array:
    """(draws, 8): the rates that so many tuning seeds give an optimizer; with `inert` of a space of two dimensions."""
    space = {"eps": ["log", 1e-10, 1e-6]} if inert else {}
    space |= {"lr": ["log", 1e-4, 1.0]}
    return np.array([[point["lr"] for point in draw(space, "qmc", seed, 8)] for seed in range(draws)])


def place(rate: Array, rates: int) -> NDArray[np.int64]:
    """The place of the nearest of so many rates, evenly from 1e-4 to 1 in the logarithm."""
    return np.rint((np.log10(rate) + 4) / 4 * (rates - 1)).astype(int)


class Resampled(Simulated):
    """A study of the bank: a run is that of the nearest rate, and of a real seed that belongs to its seed alone."""

    def __init__(
        self, bank: Bank, kinds: Mapping[str, int], shifts: Mapping[str, float], rng: np.random.Generator
    ) -> None:
        super().__init__(self._value, bank.samples if not any(shifts.values()) else 0)
        self.bank, self.kinds, self.shifts = bank, kinds, shifts
        self.order = rng.permutation(bank.seeds)
        self.seeds: dict[int, int] = {}

    def _place(self, run: Run) -> tuple[int, int, int]:
        rate = float(run.spec["optimizer"]["lr"])
        at = int(place(np.array(rate), len(self.bank.rates)))
        # The next unused real seed: no two seeds of a study share one.
        seed = self.seeds.setdefault(run.seed, int(self.order[len(self.seeds)]))
        return self.kinds[run.optimizer], at, seed

    def _value(self, run: Run) -> float:
        return float(self.bank.test[self._place(run)]) + self.shifts.get(run.optimizer, 0.0)

    def validation(self, run_id: str) -> float:
        """Of the real run; the trials are chosen by it."""
        return float(self.bank.validation[self._place(self.runs[run_id])])


TUNED = """\
name: calibration
baseline: A
{seeds}tasks:
  - {{task: vision, model: mlp, size: smoke, label: T0, overrides: {{steps: 16}}}}
optimizers:
  - {{name: adamw, weight_decay: 0.0, label: A}}
  - {{name: {other}, weight_decay: 0.0, label: B}}
tuning:
  trials: 8
  seed: {seed}
{repeated}  space: {{A: {{lr: [1e-4, 1, log]}}, B: {{lr: [1e-4, 1, log]{inert}}}}}
"""
REPEATED = "  repetitions: [5, 10]\n  seeds: 2\n"


def tuned(other: str, repeated: bool = True) -> Callable[[int], str]:
    """The YAML of tuned studies, by number: each has tuning seeds, and so settings, of its own."""
    inert = ", eps: [1e-10, 1e-6, log]" if other == "adamw" else ""
    seeds, again = ("", REPEATED) if repeated else ("seeds: 10\n", "")
    return lambda study: TUNED.format(seeds=seeds, other=other, seed=1000 + 10 * study, inert=inert, repeated=again)


def cells(bank: Bank) -> list[Cell]:
    """Tuned studies, resampled from real runs."""
    unlike, alike = bank.repetitions([0, 1], False).mean(0), bank.repetitions([0, 0], True)
    equal, a_unit = float(unlike[0] - unlike[1]), float((alike[:, 0] - alike[:, 1]).std())

    def study(kinds: dict[str, int], shift: float) -> Callable[[np.random.Generator, Plan], Any]:
        return lambda rng, plan: Resampled(bank, kinds, {"B": shift}, rng)

    effect = detectable_effect((5, 10), 1) * a_unit
    again, unlike_text = tuned("adamw"), tuned("sgdm")
    return [
        Cell("tuned AdamW against tuned AdamW with an inert dimension: looks 5, 10 repetitions", again,
             study({"A": 0, "B": 0}, 0.0), told_apart, tuned=True),
        Cell("tuned AdamW against tuned SGDM, means made equal: looks 5, 10 repetitions", unlike_text,
             study({"A": 0, "B": 1}, equal), told_apart, tuned=True),
        Cell("found: tuned AdamW made better by what --dry-run promises: looks 5, 10 repetitions", again,
             study({"A": 0, "B": 0}, effect), better, "found", 0.5, True),
        Cell("one tuning, 10 seeds, read as if it spoke of the optimizers: AdamW against itself (contrast)",
             tuned("adamw", False), study({"A": 0, "B": 0}, 0.0), told_apart, "contrast", 0.25, True),
    ]  # fmt: skip
