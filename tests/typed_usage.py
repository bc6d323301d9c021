"""What a user's script looks like to a type checker. `mypy` reads it: an `ignore` that is not needed is an error there,
so each one here says that the mistake on its line is found."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from typing_extensions import override

import hf_optim
from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import Block, sqrt

model = torch.nn.Linear(3, 1)
good = hf_optim.SMARAN(model.parameters(), lr=0.1, gamma=0.9, norm_scope="tensor")
loss = good.step(loss=1.0)
rates: list[float] = good.effective_lr()
hf_optim.SMARAN(model.parameters(), gama=0.9)  # type: ignore[call-arg]
hf_optim.AMVT(model.parameters(), lr="fast")  # type: ignore[arg-type]
hf_optim.NoSuchThing  # type: ignore[attr-defined] # noqa: B018
hf_optim.Session(model, good, epoch=1)  # type: ignore[call-arg]
raised: type[ValueError] = hf_optim.UserError

hf_optim.SMARAN(model.parameters()).step(los=1.0)  # type: ignore[call-arg]


class Momentum(Optimizer):
    """A rule of one's own."""

    slots = {"m": 0.0}
    needs = {"loss"}

    def __init__(self, params: Iterable[torch.Tensor], lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, locals())

    @staticmethod
    def measures(h: SimpleNamespace) -> tuple[str, ...]:
        return ("gg",)

    @staticmethod
    def measure(g: Block, c: SimpleNamespace) -> tuple[Any, ...]:
        return (dot(g, g),)

    @staticmethod
    def control(
        h: SimpleNamespace, t: int, sums: dict[str, float], loss: Any, memory: dict[str, float]
    ) -> dict[str, float]:
        return {"rate": h.lr * loss / (1 + sqrt(sums["gg"]))}

    @staticmethod
    def scalars(h: SimpleNamespace, t: int, s: SimpleNamespace) -> dict[str, Any]:
        return {"beta": h.beta, "rate": s.rate}

    @staticmethod
    def update(x: Block, g: Block, m: Block, c: SimpleNamespace) -> None:
        m.mul_(c.beta).add_(g)
        x.add_(m, alpha=-c.rate).sub_(c.rate * m.sign())
        x.addcdv_(m, g, value=-c.rate)  # type: ignore[attr-defined]
        m.lerp_(g)  # type: ignore[call-arg]


class Misspelt(Optimizer):
    """Hooks that mypy finds wrong."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float = 0.1) -> None:
        super().__init__(params, locals())

    @staticmethod
    @override
    def scalers(h: SimpleNamespace, t: int, s: SimpleNamespace) -> dict[str, Any]:  # type: ignore[misc]
        return {}

    @staticmethod
    def measures(h: SimpleNamespace) -> str:  # type: ignore[override]
        return "gg"


own: hf_optim.Optimizer = Momentum(model.parameters(), lr=0.1)
