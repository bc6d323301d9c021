"""The rules that language models are trained with beside implementations that others trust, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import problems
import pytest
import torch

import hf_optim

STEPS = 12


def beside(ours: dict[str, Any], make: Any, shapes: Any = None, rtol: float = 1e-9, steps: int = STEPS) -> None:
    """Ours and theirs from one start on the same gradients; after every step the distance travelled must agree."""
    problem = problems.tanh()
    both = [problem.parameters() for _ in range(2)]
    if shapes is not None:
        draw = np.random.default_rng(3)
        start = [draw.normal(size=s) for s in shapes]
        both = [[torch.tensor(a, requires_grad=True) for a in start] for _ in range(2)]
    optimizers = [
        hf_optim.create(ours["name"], both[0], **{k: v for k, v in ours.items() if k != "name"}),
        make(both[1]),
    ]
    for optimizer in optimizers:
        if hasattr(optimizer, "train"):
            optimizer.train()
    first = [p.detach().clone() for p in both[0]]
    for t in range(1, steps + 1):
        for params, optimizer in zip(both, optimizers, strict=True):
            optimizer.zero_grad()
            if shapes is None:
                problem.torch(params, t).backward()
            else:
                g = np.random.default_rng(t)
                for p, s in zip(params, shapes, strict=True):
                    p.grad = torch.tensor(g.normal(size=s)) + 0.3 * p.detach()
            optimizer.step()
        for a, b, begin in zip(*both, first, strict=True):
            moved = float((b - begin).detach().abs().max())
            assert float((a - b).detach().abs().max()) <= rtol * max(moved, 1e-6), f"after {t} steps"
    for optimizer in optimizers:
        if hasattr(optimizer, "eval"):
            optimizer.eval()
    for a, b, begin in zip(*both, first, strict=True):
        moved = float((b - begin).detach().abs().max())
        assert float((a - b).detach().abs().max()) <= max(rtol, 1e-8) * moved, "as evaluated"


# --- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hyper", [{}, {"momentum_decay": 0.1, "weight_decay": 0.2, "betas": (0.6, 0.9)}])
def test_nadamw_is_torchs_with_decoupled_decay(hyper):
    """torch multiplies its product of momenta up in float32."""
    theirs = {"weight_decay": 0.01, **hyper}
    beside(
        {"name": "nadamw", **hyper}, lambda p: torch.optim.NAdam(p, decoupled_weight_decay=True, **theirs), rtol=1e-6
    )


@pytest.mark.parametrize("hyper", [{}, {"lr": 0.5, "d": 1.5, "weight_decay": 0.1, "beta2_decay": -0.6}])
def test_adafactor_is_torchs(hyper):
    """Of more than two dimensions the last two are factored."""
    beside({"name": "adafactor", **hyper}, lambda p: torch.optim.Adafactor(p, eps=(2.0**-23, 1e-3), **hyper))
    shapes = [(4, 3), (5,), (2, 3, 4, 5)]
    beside({"name": "adafactor", **hyper}, lambda p: torch.optim.Adafactor(p, eps=(2.0**-23, 1e-3), **hyper), shapes)


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_is_torchs(adjust):
    """To the precision of bfloat16, in which torch iterates."""
    hyper = {"lr": 0.02, "weight_decay": 0.1}
    shapes = [(6, 3), (3, 7), (5, 5)]
    beside({"name": "muon", "adjust_lr": adjust, "ns_dtype": "bf16", **hyper},
           lambda p: torch.optim.Muon(p, adjust_lr_fn=adjust, **hyper), shapes, rtol=6e-2)  # fmt: skip


# --- packages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hyper", [{}, {"warmup_steps": 5, "r": 1.0, "weight_lr_power": 1.0}, {"weight_decay": 0.1}])
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_schedule_free_is_the_authors(name, hyper):
    theirs = getattr(pytest.importorskip("schedulefree"), f"{name}ScheduleFree")
    hyper = {"lr": 0.05, **hyper}
    beside({"name": f"schedule_free_{name.lower()}", **hyper}, lambda p: theirs(p, **hyper))


@pytest.fixture
def po():
    return pytest.importorskip("pytorch_optimizer")


@pytest.mark.parametrize("T", [None, 8])
def test_ademamix_is_theirs(po, T):
    beside({"name": "ademamix", "T": T, "lr": 0.01}, lambda p: po.AdEMAMix(p, lr=0.01, t_alpha_beta3=T), rtol=1e-7)


def test_adopt_is_theirs_with_the_papers_count(po):
    """The package counts the first step, which moves nothing, too: its clip is 2^(1/4) where the paper's is 1."""
    theirs = lambda p: po.ADOPT(p, lr=0.02, betas=(0.9, 0.99), clip_lambda=lambda t: (t - 1) ** 0.25)  # noqa: E731
    beside({"name": "adopt", "lr": 0.02, "betas": (0.9, 0.99)}, theirs, rtol=1e-7)


def test_mars_is_theirs_where_the_first_gradient_is_clipped(po):
    """The package takes the gradient before the first for 0, which changes its length only: clipped, nothing. Its eps
    is added before v is corrected."""
    shapes = [(4, 6), (6, 6)]
    hyper = {"lr": 0.02, "eps": 1e-14}
    beside({"name": "mars", **hyper}, lambda p: po.MARS(p, **hyper), shapes, rtol=1e-6)


def test_soap_is_theirs_until_the_basis_changes(po):
    """From then on the package sorts basis and second moment anew, which the paper does not."""
    hyper = {"lr": 0.01, "weight_decay": 0.0}
    shapes = [(4, 4), (5, 5)]
    beside({"name": "soap", "frequency": 100, **hyper},
           lambda p: po.SOAP(p, precondition_frequency=100, **hyper), shapes, rtol=1e-4)  # fmt: skip


def test_signum_is_theirs(po):
    hyper = {"lr": 0.02, "weight_decay": 0.1}
    beside({"name": "signum", **hyper}, lambda p: po.SignSGD(p, momentum=0.9, **hyper))


@pytest.mark.parametrize("name", ["cautious_lion", "cautious_adamw"])
def test_cautious_ones_are_theirs_but_for_one_element(po, name):
    """The package divides by (number of ones + 1) / size, as the paper prints it. Without its slow average AdEMAMix is
    AdamW."""
    hyper = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    slow = {**hyper, "betas": (0.9, 0.99, 0.999), "alpha": 0.0, "weight_decouple": True}
    theirs = {
        "cautious_lion": lambda p: po.Lion(p, cautious=True, **hyper),
        "cautious_adamw": lambda p: po.AdEMAMix(p, cautious=True, **slow),
    }
    beside({"name": name, **hyper}, theirs[name], [(40, 50), (3000,)], rtol=2e-3)
