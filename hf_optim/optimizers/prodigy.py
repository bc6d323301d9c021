"""Prodigy: Adam that estimates its own rate."""

from __future__ import annotations

from typing import Any

import torch

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.reduce import dot, l1
from hf_optim.core.vocabulary import maximum, minimum, where
from hf_optim.errors import UserError


class Prodigy(Optimizer):
    """Prodigy: Adam with an estimate d of the distance to the solution as its rate (Mishchenko and Defazio 2024).

        1   dlr = d lr b                                         b = sqrt(1 - beta2^k) / (1 - beta1^k), or 1
        2   num = beta3 num + (d / d0) dlr <g, x0 - x>           over all tensors; g + weight_decay x if not decouple
        3   m = beta1 m + (1 - beta1) d g
        4   v = beta2 v + (1 - beta2) d^2 g^2
        5   s = beta3 s + (d / d0) dlr g                         safeguard_warmup: d in the place of dlr
        6   dhat = d_coef num / ||s||_1                          over all tensors
        7   d = max(d, dhat) if d = d0;  d_max = max(d_max, dhat);  d = min(d_max, d growth_rate)
        8   x = x (1 - dlr weight_decay) - dlr m / (sqrt(v) + d eps)      the old dlr, the new d

    While ||s||_1 is 0 nothing is updated and k does not count; a group with lr = 0 takes no part.

    Args:
        params: tensors or groups; their rates must be equal or 0.
        lr: 1.0, a multiplier: leave it, and schedule it.
        betas: (0.9, 0.999).
        beta3: decay of num and s; None for sqrt(beta2).
        eps: 1e-8, multiplied by d.
        weight_decay: 0.0.
        decouple: decay as AdamW does (True) or by an L2 term.
        use_bias_correction: line 1's b.
        safeguard_warmup: keep lr out of s, for schedules with a warm-up.
        d0: first d, 1e-6.
        d_coef: 1.0, the knob to turn if the rate comes out too small or too large.
        growth_rate: largest factor by which d may grow in a step; inf.
        slice_p: only every slice_p-th element of each flattened tensor enters num and s, whose state shrinks as much.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer. x0 is never stored in bf16: rounding
            it would be larger than x0 - x.

    Raises:
        UserError: at a step with groups of different rates, or for slice_p > 1 on sharded parameters.

    Source: Prodigy, Algorithm 4, with line 7's order and the options of its published code.
    """

    paper = "Prodigy: An Expeditiously Adaptive Parameter-Free Learner"
    cited = (
        "Mishchenko, Konstantin and Defazio, Aaron",
        "Prodigy: An Expeditiously Adaptive Parameter-Free Learner",
        "International Conference on Machine Learning",
        2024,
    )
    slots = {"m": 0.0, "v": 0.0, "s": 0.0, "x0": "param"}
    sliced = ("s", "x0")
    optional_slots = {"s": ("slice_p", 1), "x0": ("slice_p", 1)}
    memory = {"d": 0.0, "d_max": 0.0, "num": 0.0, "k": 0.0}  # d = 0: not begun
    structural = ("decouple", "use_bias_correction", "safeguard_warmup", "slice_p")
    shared = ("betas", "beta3", "d0", "d_coef", "growth_rate")
    bounds = {
        "beta3": (0.0, 1.0, True, False),
        "d0": (0.0, float("inf"), False, False),
        "d_coef": (0.0, float("inf"), False, False),
        "growth_rate": (1.0, float("inf"), True, True),
        "slice_p": (1, float("inf"), True, False),
    }
    search_space = {"d_coef": ("log", 0.25, 4.0), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = float("inf"),
        slice_p: int = 1,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    # --- state and its slices --------------------------------------------------------------------------------------

    def _first_value(self, name: str, p: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        if name == "x0":
            return p.detach().to(self._compute_dtype(p), copy=True)
        return super()._first_value(name, p, group)

    def _make_state(self, p: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if group["slice_p"] > 1 and hasattr(p, "to_local"):
            raise UserError("prodigy: slice_p > 1 needs whole tensors, and a parameter is a shard: use slice_p=1")
        super()._make_state(p, state, group)
        if group["slice_p"] > 1:
            state["x0_slice"] = self._first_value("x0", p.detach().flatten()[:: group["slice_p"]], group)
            state["s_slice"] = torch.zeros_like(state["x0_slice"], dtype=self.state_dtype)

    def _advance(self, f: float | None, evaluate: Any) -> None:
        rates = sorted({float(group["lr"]) for group in self.param_groups} - {0.0})
        if len(rates) > 1:
            raise UserError(
                f"prodigy has one rate, but its groups have lr = {', '.join(f'{r:g}' for r in rates)}: "
                "give all groups the same lr (or 0)"
            )
        super()._advance(f, evaluate)

    @staticmethod
    def stride(h):
        return h.slice_p

    @staticmethod
    def idle(h):
        return h.lr == 0

    # --- the rule --------------------------------------------------------------------------------------------------

    @staticmethod
    def measures(h):
        return ("num", "den")

    @staticmethod
    def prepare(h, t, memory):
        (beta1, beta2), k = h.betas, memory["k"] + 1
        d = where(memory["d"] > 0, memory["d"], h.d0)
        bias = (1 - beta2**k) ** 0.5 / (1 - beta1**k) if h.use_bias_correction else 1.0
        dlr = d * h.lr * bias
        return {
            "l2": h.weight_decay != 0 and not h.decouple,
            "weight_decay": h.weight_decay,
            "beta1": beta1,
            "m_weight": (1 - beta1) * d,
            "beta2": beta2,
            "v_weight": (1 - beta2) * d * d,
            "beta3": beta2**0.5 if h.beta3 is None else h.beta3,
            "num_weight": d / h.d0 * dlr,
            "s_weight": d / h.d0 * (d if h.safeguard_warmup else dlr),
            "dlr": dlr,
            "decay": h.weight_decay != 0 and h.decouple,
            "decay_step": dlr * h.weight_decay,
        }

    @staticmethod
    def measure(x, g, s, x0, c):  # lines 2, 5
        if c.l2:
            g = g.add(x, alpha=c.weight_decay)
        s.mul_(c.beta3).add_(g, alpha=c.s_weight)
        return dot(g, x0 - x) * c.num_weight, l1(s)

    @staticmethod
    def control(h, t, sums, loss, memory):  # lines 6, 7
        begun = sums["den"] > 0
        d, d_max = (where(memory[k] > 0, memory[k], h.d0) for k in ("d", "d_max"))
        beta3 = h.betas[1] ** 0.5 if h.beta3 is None else h.beta3
        num = beta3 * memory["num"] + sums["num"]
        estimate = h.d_coef * num / where(begun, sums["den"], 1.0)
        d_max = maximum(d_max, estimate)
        d_new = minimum(d_max, where(d <= h.d0, maximum(d, estimate), d) * h.growth_rate)
        new = {"d": d_new, "d_max": d_max, "num": num, "k": memory["k"] + 1}
        memory.update({k: where(begun, v, memory[k]) for k, v in new.items()})
        return {"d": where(begun, d_new, d), "moved": begun}

    @staticmethod
    def scalars(h, t, s):
        return {"eps": h.eps * s.d, "moved": s.moved}

    @staticmethod
    def update(x, g, raw, m, v, c):
        if c.l2:
            decay = x * c.weight_decay
            g, raw = g + decay, raw + decay
        m.mul_(c.beta1).add_(g, alpha=c.m_weight)
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.v_weight)
        if c.decay:
            x.add_(x, alpha=-where(c.moved, c.decay_step, 0.0))  # 1 - decay_step would lose it while d is small
        x.addcdiv_(m, v.sqrt().add_(c.eps), value=-where(c.moved, c.dlr, 0.0))

    @staticmethod
    def rate(h, memory):
        return (memory["d"] or h.d0) * h.lr
