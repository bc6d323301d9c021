"""Every optimizer against the stored reference trajectories, and against its own twin under many settings."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import problems
import pytest
from twins import DEFAULTS, TWINS, run, stored, variants
from twins.compare import Ours, registered, trajectory

STEPS = 15


@cache
def problem(name: str) -> problems.Problem:
    return {"lsq": problems.lsq, "tanh": problems.tanh, "beale": problems.beale}[name]()


def ident(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    return ",".join(f"{k}={v}" for k, v in value.items()).replace(" ", "") or "default"


@pytest.mark.parametrize("name", ["lsq", "beale", "tanh"])
def test_the_two_views_of_a_problem_agree(name: str) -> None:
    """The gradients by hand are torch's."""
    import torch

    params = problem(name).parameters()
    loss = problem(name).torch(params, 3)
    value, wanted = problem(name).numpy([p.detach().numpy() for p in params], 3)
    assert abs(value - loss.item()) < 1e-14
    for a, b in zip(torch.autograd.grad(loss, params), wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("stem", stored.FILES)
def test_twin_follows_the_stored_trajectory(stem: str) -> None:
    name, hyper = stored.ours(stem)
    seen: dict[int, float] = {}

    def f(x: list[np.ndarray], t: int) -> tuple[float, list[np.ndarray]]:
        loss, gradients = problem("lsq").numpy(x, t)
        seen.setdefault(t, loss)
        return loss, gradients

    steps = run(name, problem("lsq").start, f, 60, **hyper)
    for k, (wanted, atol, _) in stored.checkpoints(stem).items():
        for a, b in zip(steps[k - 1][0] if k else problem("lsq").start, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=f"after {k} updates")
    np.testing.assert_allclose([seen[t + 1] for t in range(60)], stored.losses(stem), rtol=1e-12)


@pytest.mark.parametrize("stem", stored.FILES)
def test_ours_follows_the_stored_trajectory(stem: str) -> None:
    name, hyper = stored.ours(stem)
    registered(name, hyper)
    ours = Ours(name, problem("lsq"), **hyper)
    wanted = stored.checkpoints(stem)
    for k in range(1, 61):
        ours.step(k)
        if k in wanted:
            params, atol, aux = wanted[k]
            for a, b in zip(ours.arrays(), params, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=f"after {k} updates")
            if aux is not None and name != "ponos":  # there it counts backtracks
                rate = ours.opt.effective_lr()[0]
                scale = hyper["lr"] if name == "smaran" else 1.0  # there it is V
                np.testing.assert_allclose(rate, scale * aux, rtol=1e-9, err_msg=f"the rate after {k} updates")


CASES = [(name, variant) for name in variants.VARIANTS for variant in variants.VARIANTS[name]]


@pytest.mark.parametrize("kind", ["lsq", "tanh"])
@pytest.mark.parametrize(("name", "variant"), CASES, ids=ident)
def test_ours_follows_its_twin(name: str, variant: dict[str, Any], kind: str) -> None:
    if variant.get("on", kind) != kind:
        pytest.skip("a variant for the other problem")
    hyper = variants.hyper(variant)
    registered(name, hyper)
    groups = variants.groups(name, variant, len(problem(kind).start), DEFAULTS[name])
    wanted = trajectory(name, problem(kind), STEPS, groups, hyper)
    ours = Ours(name, problem(kind), groups, **hyper)
    # What one number a group says of a rate by tensor, or of a rate on an adapted rate, is not the paper's business.
    stacked = hyper.get("scope") == "tensor" or (hyper.get("base", {}).get("name") in ("smaran",))
    assert max(wanted.atol) < 1e-9, "too chaotic to tell a right rule from a wrong one: choose a calmer variant"
    for k in range(1, STEPS + 1):
        ours.step(k)
        wrong = wanted.wrong(k, ours.arrays())
        assert not wrong, f"after {k} updates: {wrong}"
        rates = wanted.rates(k)
        if rates is not None and not stacked:
            np.testing.assert_allclose(ours.opt.effective_lr(), rates, rtol=1e-8, err_msg=f"rates after {k} updates")


@pytest.mark.parametrize("name", sorted(TWINS))
def test_step_takes_a_closure_too(name: str) -> None:
    """The same trajectory, bit for bit, whether the loss comes by closure or beside ready gradients."""
    hyper = variants.hyper(variants.VARIANTS[name][0])
    registered(name, hyper)
    both = [Ours(name, problem("tanh"), style=style, autograd=True, **hyper) for style in ("closure", "loss")]
    for k in range(1, 8):
        for ours in both:
            ours.step(k)
    for a, b in zip(both[0].arrays(), both[1].arrays(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_name_has_a_twin_and_variants() -> None:
    assert set(variants.VARIANTS) == set(TWINS)


@pytest.mark.parametrize("name", sorted(TWINS))
def test_defaults_are_those_of_the_contract(name: str) -> None:
    """What the registry says a hyper-parameter defaults to is what the twin was written with."""
    registered(name, {})
    import hf_optim

    hidden = {"agr", "base"} | ({"decoupled_weight_decay"} if name == "adamw" else set())
    if name in ("adan",):
        hidden |= {"agr_moments", "agr_scope", "agr_steps"}
    if name == "l4_mom":
        hidden |= {"adam_eps"}
    defaults = hf_optim.info(name).defaults
    required = {
        "sgd_agr": {"lr"},
        "hd_sgd": {"lr"},
        "hd_adam": {"lr"},
        "sgd": {"lr"},
        "sgdm": {"lr"},
        "nesterov": {"lr"},
        "hdk": {"eta", "interval"},
    }.get(name, set())
    contract = dict(DEFAULTS[name])
    if name == "tlr_legacy":  # those of the published code
        contract |= {"gamma": 0.2, "p": 1 / 3, "cap": float("inf"), "scope": "group"}
    for key, value in contract.items():
        if key in hidden or key in required:
            continue
        assert key in defaults, f"{name} has no {key}; it has {', '.join(defaults)}"
        assert defaults[key] == value, f"{name}: {key} defaults to {defaults[key]!r}, the contract says {value!r}"


@pytest.mark.parametrize("name", sorted(TWINS))
def test_a_twin_fits_in_25_lines(name: str) -> None:
    """So that it can be held against the paper at one look."""
    source = inspect.getsource(TWINS[name])
    body = source[source.index("def ") :].splitlines()  # the hyper-parameters are named above
    assert len([line for line in body if line.strip()]) <= 25
