"""AMVT's modules: off is AMVT to the bit, on is what the docstring says, and reports can tell what is ours."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hf_optim
from hf_optim import registry
from hf_optim.core.definitions import own_definitions
from hf_optim.errors import BadCheckpoint, UserError
from hf_optim.optimizers.amvt_modules import plateau, product
from hf_optim.study.plan import plan, source

STUDY = Path(__file__).parent.parent / "configs" / "studies" / "amvt_ablation.yaml"
SHAPES = ((5, 4), (3,), (1,))
ALL_ON = {"snr": True, "curvature": True, "momentum_schedule": 4, "update_clip": 0.5}


def gradients(t: int) -> list[np.ndarray]:
    rng = np.random.default_rng(t)
    return [rng.standard_normal(s) * 10.0 ** rng.integers(-3, 3) + 0.3 for s in SHAPES]


def start(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    return [torch.tensor(rng.standard_normal(s), dtype=dtype, requires_grad=True) for s in SHAPES]


def steps(opt: torch.optim.Optimizer, params: list[torch.Tensor], first: int, last: int) -> None:
    for t in range(first, last + 1):
        for p, g in zip(params, gradients(t), strict=True):
            p.grad = torch.tensor(g, dtype=p.dtype)
        opt.step()


def run(name: str, n: int = 12, dtype: torch.dtype = torch.float64, **hyper: Any) -> list[torch.Tensor]:
    params = start(dtype)
    steps(hf_optim.create(name, params, **hyper), params, 1, n)
    return params


OFF: list[dict[str, Any]] = [
    {},
    {"lr": 0.1, "betas": (0.8, 0.95, 0.9)},
    {"clip": 0.3},
    {"momentum": "raw"},
    {"eps_mode": "outside", "weight_decay": 0.01},
    {"decay": "adamw", "weight_decay": 0.1, "clip": 1.0},
    {"grad_transform": "agr"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("hyper", OFF, ids=str)
def test_everything_off_is_amvt_to_the_bit(hyper, dtype):
    for a, b in zip(run("amvt", dtype=dtype, **hyper), run("amvt_modules", dtype=dtype, **hyper), strict=True):
        assert torch.equal(a, b)


def twin(
    n: int,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.99),
    eps: float = 1e-8,
    momentum: str = "corrected",
    eps_mode: str = "inside",
    snr: bool = False,
    curvature: bool = False,
    momentum_schedule: int | None = None,
    update_clip: float | None = None,
) -> list[np.ndarray]:
    """The docstring's algorithm, line by line."""
    beta1, beta2, beta3 = betas
    x = [p.detach().numpy().copy() for p in start()]
    m, v, s, y, previous = ([np.zeros(shape) for shape in SHAPES] for _ in range(5))
    decayed = 1.0
    for t in range(1, n + 1):
        b = beta1
        if momentum_schedule:
            b = min(beta1, 1 - 1 / (2 * (t // momentum_schedule + 1)))
        decayed *= b
        for i, g in enumerate(gradients(t)):
            m[i] = b * m[i] + (1 - b) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g**2
            s[i] = beta3 * s[i] + (1 - beta3) * (g - m[i]) ** 2
            y[i] = beta3 * y[i] + (1 - beta3) * (g - previous[i]) ** 2 if t > 1 else 0 * g
            previous[i] = g
            mhat, vhat, shat = m[i] / (1 - decayed), v[i] / (1 - beta2**t), s[i] / (1 - beta3**t)
            yhat = y[i] / (1 - beta3 ** (t - 1)) if curvature and t > 1 else 0.0
            spread = vhat + shat + yhat
            r = mhat**2 / (mhat**2 + shat) if snr else 1.0
            root = np.sqrt(spread + eps) if eps_mode == "inside" else np.sqrt(spread) + eps
            u = r * (mhat if momentum == "corrected" else m[i]) / root
            x[i] -= lr * (np.clip(u, -update_clip, update_clip) if update_clip else u)
    return x


CASES: list[dict[str, Any]] = [
    dict(zip(ALL_ON, on, strict=True)) for on in itertools.product(*[(type(v)() or None, v) for v in ALL_ON.values()])
]
CASES = [{k: v for k, v in case.items() if v} for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "hyper",
    [{}, {"lr": 0.1, "momentum": "raw", "eps_mode": "outside", "betas": (0.7, 0.9, 0.8)}],
    ids=["default", "other"],
)
def test_each_module_and_all_together(case, hyper):
    for a, b in zip(run("amvt_modules", 15, **hyper, **case), twin(15, **hyper, **case), strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=1e-9, atol=1e-12)


def test_every_module_does_something():
    plain = run("amvt_modules")
    for key, value in ALL_ON.items():
        assert not torch.equal(plain[0], run("amvt_modules", **{key: value})[0]), key


def test_a_coordinate_without_gradient_stays():
    params = start()
    before = [p.detach().clone() for p in params]
    opt = hf_optim.create("amvt_modules", params, **ALL_ON)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_update_clip_bounds_every_move():
    params = start()
    opt = hf_optim.create("amvt_modules", params, lr=0.1, update_clip=0.2)
    for t in range(1, 30):
        before = [p.detach().clone() for p in params]
        steps(opt, params, t, t)
        moved = max(float((p.detach() - b).abs().max()) for p, b in zip(params, before, strict=True))
        assert moved <= 0.1 * 0.2 * (1 + 1e-9)


@pytest.mark.parametrize("steps_", [1, 3, 250])
@pytest.mark.parametrize("beta1", [0.0, 0.4, 0.9, 0.99])
def test_the_schedules_product_is_the_product(steps_, beta1):
    whole = 1.0
    for t in range(1, 60):
        whole *= plateau(t, beta1, steps_)
        assert product(t, beta1, steps_) == pytest.approx(whole, rel=1e-12, abs=1e-300)


def test_resume_and_structure(tmp_path):
    whole, params = start(), start()
    opt = hf_optim.create("amvt_modules", whole, **ALL_ON)
    steps(opt, whole, 1, 9)
    first = hf_optim.create("amvt_modules", params, **ALL_ON)
    steps(first, params, 1, 5)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    again = hf_optim.create("amvt_modules", params, **ALL_ON)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(again, params, 6, 9)
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))
    with pytest.raises(BadCheckpoint, match="curvature"):
        hf_optim.create("amvt_modules", params, **{**ALL_ON, "curvature": False}).load_state_dict(first.state_dict())


def test_only_curvature_costs_memory():
    slots = {"m", "v", "s"}
    for on, extra in ((False, set()), (True, {"q", "y"})):
        params = start()
        opt = hf_optim.create("amvt_modules", params, **{**ALL_ON, "curvature": on})
        steps(opt, params, 1, 1)
        assert set(opt.state[params[0]]) == slots | extra | {"step"}


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"momentum_schedule": 0}, "momentum_schedule"),
        ({"momentum_schedule": 2.5}, "momentum_schedule"),
        ({"momentum_schedule": True}, "momentum_schedule"),
        ({"update_clip": 0.0}, "update_clip"),
        ({"snr": 1}, "snr"),
        ({"curvature": "yes"}, "curvature"),
    ],
)
def test_bad_values_are_one_clear_line(hyper, message):
    with pytest.raises(UserError, match=message):
        hf_optim.create("amvt_modules", start(), **hyper)


# --- what is ours --------------------------------------------------------------------------------------------------

SPECS: list[tuple[Any, int]] = [
    ("amvt", 0),
    ("smaran", 0),
    ("amvt_modules", 0),
    ({"name": "amvt_modules", **ALL_ON}, 4),
    ({"name": "amvt_modules", "snr": True, "curvature": False}, 1),
    ({"name": "lion", "grad_transform": "normalize"}, 1),
    ({"name": "lion", "grad_transform": {"name": "normalize", "outliers": 5.0}}, 2),
    ({"name": "lion", "grad_transform": "agr"}, 0),
    ({"name": "amvt", "grad_transform": "outlier_filter"}, 1),
    ({"name": "tlr", "interval": 3, "base": {"name": "amvt_modules", "snr": True, "grad_transform": "normalize"}}, 2),
]


@pytest.mark.parametrize(("spec", "count"), SPECS, ids=str)
def test_own_definitions_of_a_specification_and_of_its_optimizer(spec, count):
    definitions = own_definitions(spec)
    assert len(definitions) == count and len(set(definitions)) == count
    assert own_definitions(registry.build(spec, start())) == definitions


def test_own_definitions_of_other_optimizers():
    assert own_definitions(torch.optim.SGD(start(), lr=0.1)) == []
    assert own_definitions({"name": "torch.optim:NAdam"}) == []


def test_own_definitions_need_no_torch():
    code = (
        "import sys; from hf_optim.core.definitions import own_definitions as o; spec = {'name': 'amvt_modules', "
        "'snr': True, 'grad_transform': 'normalize'}; print(len(o(spec)), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["2", "False"]


def test_the_ablation_can_be_run():
    study_plan = plan.expand(source.read(STUDY))
    definitions = {o["label"]: own_definitions(o["spec"]) for o in study_plan.optimizers}
    assert [len(texts) for texts in definitions.values()] == [0, 0, 2, 6]
    assert study_plan.baseline == "Adam"
    for entry in study_plan.optimizers:
        params, spec = start(), dict(entry["spec"])
        steps(hf_optim.create(spec.pop("name"), params, **spec), params, 1, 2)
        assert all(torch.isfinite(p).all() for p in params)
