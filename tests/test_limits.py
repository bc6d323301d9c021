"""Limits in which one method must be another, and what must hold of every name."""

from __future__ import annotations

from typing import Any

import numpy as np
import problems
import pytest
from twins import DEFAULTS
from twins.compare import Ours, Walk, registered


def both(
    first: str,
    second: str,
    a: dict[str, Any],
    b: dict[str, Any],
    steps: int = 12,
    rtol: float = 1e-12,
    problem: problems.Problem | None = None,
) -> None:
    """Follow both on a problem and assert that they stay together."""
    for name, hyper in ((first, a), (second, b)):
        registered(name, hyper)
    problem = problem or problems.tanh()
    left, right = Ours(first, problem, **a), Ours(second, problem, **b)
    for k in range(1, steps + 1):
        left.step(k)
        right.step(k)
        for i, (x, y) in enumerate(zip(left.arrays(), right.arrays(), strict=True)):
            np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol, err_msg=f"tensor {i} after {k} updates")


# --- one method is another ----------------------------------------

TINY = 1e-30
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
LIMITS = {
    "AMVT without momentum has no variance: Adam": (
        "amvt",
        {"lr": 0.01, "betas": (0.0, 0.9, 0.8), "eps_mode": "outside"},
        "adam",
        {"lr": 0.01, "betas": (0.0, 0.9)},
    ),
    "AMVT's lr-wise decay is AdamW's, on the old parameters": (
        "amvt",
        {"lr": 0.01, "betas": (0.0, 0.9, 0.8), "eps_mode": "outside", "decay": "adamw", "weight_decay": 0.1},
        "adamw",
        {"lr": 0.01, "betas": (0.0, 0.9), "weight_decay": 0.1},
    ),
    "Lookahead that goes all the way is its base (SGD)": (
        "lookahead",
        {"alpha": 1.0, "k": 3, "base": SGD},
        "sgd",
        {"lr": 0.05, "momentum": 0.9},
    ),
    "Lookahead that goes all the way is its base (Adam)": (
        "lookahead",
        {"alpha": 1.0, "k": 2, "base": {"name": "adam", "lr": 0.01}},
        "adam",
        {"lr": 0.01},
    ),
    "Lookahead at every step scales SGD's rate": (
        "lookahead",
        {"alpha": 0.3, "k": 1, "base": {"name": "sgd", "lr": 0.1}},
        "sgd",
        {"lr": 0.03},
    ),
    "AdamW(AGR) before AGR begins is AdamW": (
        "adamw_agr",
        {"agr_steps": 0, "lr": 0.01, "weight_decay": 0.1},
        "adamw",
        {"lr": 0.01, "weight_decay": 0.1},
    ),
    "Adan(AGR) without AGR is Adan": ("adan_agr", {"agr_steps": 0, "lr": 0.01}, "adan", {"lr": 0.01}),
    "Adan(AGR) without AGR is Adan, when all moments would see it": (
        "adan_agr",
        {"agr_steps": 0, "agr_moments": "all", "lr": 0.01, "weight_decay": 0.1},
        "adan",
        {"lr": 0.01, "weight_decay": 0.1},
    ),
    "SGD(AGR) without AGR is SGD": (
        "sgd_agr",
        {"agr_steps": 0, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
        "sgd",
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    ),
    "Adan that ignores the difference is Adam": (
        "adan",
        {"lr": 0.01, "betas": (0.9, 0.0, 0.99)},
        "adam",
        {"lr": 0.01, "betas": (0.9, 0.99)},
    ),
    "Prodigy that never adapts is Adam at d0": (
        "prodigy",
        {"d_coef": TINY, "d0": 1e-2, "use_bias_correction": True, "eps": TINY},
        "adam",
        {"lr": 1e-2, "eps": TINY},
    ),
    "PAdam with p = 1/2 is AMSGrad": (
        "padam",
        {"partial": 0.5, "lr": 0.01, "eps": TINY, "betas": (0.5, 0.6)},
        "amsgrad",
        {"lr": 0.01, "eps": TINY, "betas": (0.5, 0.6)},
    ),
    "AdaBound with bounds that never bind is Adam": ("adabound", {"gamma": 1e-13, "eps": TINY}, "adam", {"eps": TINY}),
    "HDSGD with a hypergradient rate of 0 is SGD": (
        "hd_sgd",
        {"lr": 0.05, "hypergrad_lr": 0.0, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        "nesterov",
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    ),
    "HDAdam with a hypergradient rate of 0 is Adam": (
        "hd_adam",
        {"lr": 0.01, "hypergrad_lr": 0.0, "eps": TINY},
        "adam",
        {"lr": 0.01, "eps": TINY},
    ),
    "HDK with a meta rate of 0 is its base": (
        "hdk",
        {"eta": 0.0, "interval": 2, "base": SGD},
        "sgd",
        {"lr": 0.05, "momentum": 0.9},
    ),
    "SPS under a small cap is SGD at the cap": ("sps", {"adapt": "constant", "eta_max": 0.003}, "sgd", {"lr": 0.003}),
    "SPS that may grow at once is the unsmoothed SPS": (
        "sps",
        {"gamma": 1e9, "steps_per_epoch": 1},
        "sps",
        {"adapt": "constant"},
    ),
    "SLS that accepts everything is SGD": (
        "sls",
        {"reset_option": 0, "init_step_size": 0.003, "c": 1e-9},
        "sgd",
        {"lr": 0.003},
    ),
    "PoNoS between equal bounds is SGD": (
        "ponos",
        {"min_eta": 0.003, "max_eta": 0.003, "c": 1e-9},
        "sgd",
        {"lr": 0.003},
    ),
    "TLR whose first comparison is far away is its base": (
        "tlr",
        {"interval": 7, "base": SGD},
        "sgd",
        {"lr": 0.05, "momentum": 0.9},
    ),
    "the authors' TLR moves the rate at 3K + 1 and not before": (
        "tlr_legacy",
        {"interval": 4, "base": SGD},
        "sgd",
        {"lr": 0.05, "momentum": 0.9},
    ),
}


@pytest.mark.parametrize("case", LIMITS)
def test_limit(case: str) -> None:
    first, a, second, b = LIMITS[case]
    both(first, second, a, b, steps=12)


def test_decgd_with_a_large_offset_is_momentum() -> None:
    both("decgd", "sgd", {"lr": 0.02, "c": 1e12, "gamma": 0.8}, {"lr": 0.02, "momentum": 0.8}, rtol=1e-9)


def test_decgd_begins_with_a_gradient_step() -> None:
    both("decgd", "sgd", {"lr": 0.02, "c": 0.3}, {"lr": 0.02}, steps=1)


def test_lamb_at_the_origin_steps_as_adam() -> None:
    """Algorithm 2: the trust ratio is 1 where a norm is 0."""
    g = np.array([[1.0, -2.0], [0.5, 3.0]])
    lamb, adam = (Walk(name, [np.zeros((2, 2))], lr=0.01, eps=1e-6).step([g])[0] for name in ("lamb", "adam"))
    np.testing.assert_allclose(lamb, adam, rtol=1e-12)


@pytest.mark.parametrize("name", ["adabelief", "acprop"])
def test_before_the_rectification_begins_it_is_radam(name: str) -> None:
    both(name, "radam", {"lr": 0.01}, {"lr": 0.01}, steps=5)


def test_yogi_begins_as_adam() -> None:
    both("yogi", "adam", {"lr": 0.01, "initial_accumulator": TINY, "eps": 1e-8}, {"lr": 0.01}, steps=1, rtol=1e-10)


@pytest.mark.parametrize("base", [{"name": "sgd", "lr": 0.01}, {"name": "adam", "lr": 1e-3}])
@pytest.mark.parametrize("k", [3, 5])
def test_tlr_before_2k_is_its_base_to_the_bit_and_moves_at_2k(base: dict[str, Any], k: int) -> None:
    registered("tlr", {})
    hyper = {key: value for key, value in base.items() if key != "name"}
    first, second = Ours("tlr", problems.lsq(), interval=k, base=base), Ours(base["name"], problems.lsq(), **hyper)
    for t in range(1, 2 * k + 1):
        first.step(t)
        second.step(t)
        for a, b in zip(first.arrays(), second.arrays(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert (first.opt.effective_lr()[0] == base["lr"]) == (t < 2 * k)


@pytest.mark.parametrize("scopes", [("global", "group"), ("group", "tensor")])
def test_scopes_of_tlr_agree_where_they_must(scopes: tuple[str, str]) -> None:
    """One group: its rate is the global one. One tensor: all three are the same."""
    problem = problems.lsq() if "tensor" not in scopes else problems.beale()
    calm = {"name": "sgd", "lr": 1e-3}
    both(
        "tlr",
        "tlr",
        {"interval": 1, "scope": scopes[0], "base": calm},
        {"interval": 1, "scope": scopes[1], "base": calm},
        steps=8,
        problem=problem,
    )


def test_scopes_of_smaran_agree_on_one_tensor() -> None:
    both("smaran", "smaran", {"norm_scope": "global"}, {"norm_scope": "tensor"}, problem=problems.beale())


def test_agr_on_matrices_alone_leaves_vectors() -> None:
    """Under scope "matrix" a vector's walk is AdamW's and a matrix's is not; under "all" neither is."""
    draw, start = np.random.default_rng(3), [np.ones((2, 3)), np.ones(4)]
    walks = [
        Walk(name, start, **more)
        for name, more in (("adamw", {}), ("adamw_agr", {}), ("adamw_agr", {"agr_scope": "all"}))
    ]
    for _ in range(4):
        grads = [draw.normal(size=(2, 3)), draw.normal(size=4)]
        plain, matrix, everything = (walk.step(grads) for walk in walks)
    np.testing.assert_allclose(matrix[1], plain[1], rtol=1e-13)
    for other in (matrix[0] - plain[0], everything[0] - plain[0], everything[1] - plain[1]):
        assert np.abs(other).max() > 1e-6


# --- for every name ----------------------------------------

BASE = {
    "tlr": SGD,
    "lookahead": SGD,
    "hdk": SGD,
    "tlr_legacy": SGD,
    "tlr_sgd": {"lr": 0.05},
    "tlr_sgdm": {"lr": 0.05},
    "tlr_adam": {"lr": 0.01},
    "tlr_adamw": {"lr": 0.01},
    "lookahead_sgd": {"lr": 0.05},
    "lookahead_adam": {"lr": 0.01},
    "lookahead_amvt": {"lr": 0.01},
}
EXTRA: dict[str, dict[str, Any]] = {
    **{name: {"interval": 3} for name in BASE if "tlr" in name},
    "hdk": {"interval": 3, "eta": 1e-4},
}
NAMES = sorted(DEFAULTS)


def usual(name: str, **more: Any) -> dict[str, Any]:
    """Settings with which ``name`` walks calmly; ``more`` goes to the base of a wrapper."""
    if name in BASE:
        return EXTRA.get(name, {}) | {"base": BASE[name] | more}
    required = name in ("sgd_agr", "sgd", "sgdm", "nesterov", "hd_sgd", "hd_adam")
    return ({"lr": 0.01} if required else {}) | more


@pytest.mark.parametrize("name", NAMES)
def test_two_equal_groups_are_one_group(name: str) -> None:
    hyper = usual(name)
    registered(name, hyper)
    problem = problems.tanh()
    whole = Ours(name, problem, **hyper)
    divided = Ours(name, problem, [{"at": [0, 1, 2]}, {"at": [3, 4]}], **hyper)
    for k in range(1, 9):
        whole.step(k)
        divided.step(k)
        for a, b in zip(whole.arrays(), divided.arrays(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12, err_msg=f"after {k} updates")


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_of_zero_never_moves(name: str) -> None:
    """By the group's rate, which is what a scheduler writes; with weight decay, where there is one."""
    inner = (DEFAULTS[name].get("base", {}) | BASE.get(name, {})).get("name", name)
    more = {"weight_decay": 0.1} if "weight_decay" in DEFAULTS[inner] else {}
    hyper = usual(name, **more)
    registered(name, hyper)
    ours = Ours(name, problems.tanh(), **hyper)
    ours.step(1)
    before = [a.copy() for a in ours.arrays()]
    for group in ours.opt.param_groups:
        group["lr"] = 0.0
    for k in range(2, 9):
        ours.step(k)
    for a, b in zip(ours.arrays(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_of_zeros_from_the_start_never_moves(name: str) -> None:
    inner = (DEFAULTS[name].get("base", {}) | BASE.get(name, {})).get("name", name)
    more = {key: 0.0 for key in DEFAULTS[inner] if key.endswith("weight_decay") and "coupled" not in key}
    if name == "yogi":  # its first moment starts above zero
        more |= {"initial_accumulator": 0.0}
    start = [np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([1.0])]
    walk = Walk(name, start, **usual(name, **more))
    for _ in range(8):
        for a, b in zip(walk.step([np.zeros((2, 2)), np.zeros(1)], 0.7), start, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_without_a_gradient_is_as_if_it_were_not_there(name: str) -> None:
    hyper = usual(name)
    if name in ("tlr", "tlr_legacy", "hdk"):
        hyper |= {"base": {"name": "sgd", "lr": 0.01}}
    draw, start = np.random.default_rng(5), np.array([[1.0, -2.0], [0.5, 3.0]])
    alone, beside = Walk(name, [start], **hyper), Walk(name, [np.full((2, 3), 7.0), start], **hyper)
    for _ in range(10):
        g = draw.normal(size=(2, 2))
        wanted = alone.step([g], 0.7)[0]
        idle, stepped = beside.step([None, g], 0.7)
        np.testing.assert_array_equal(idle, np.full((2, 3), 7.0))
        np.testing.assert_allclose(stepped, wanted, rtol=1e-12)


@pytest.mark.parametrize("name", ["sps", "l4_mom", "l4_adam"])
def test_a_rule_without_a_rate_is_scaled_by_the_groups_rate(name: str) -> None:
    """Schedulers act on it: its rate is 1.0 and multiplies the step."""
    moves, g = [], np.array([1.0, -2.0])
    for scale in (1.0, 0.25):
        walk = Walk(name, [np.zeros(2)])
        assert [group["lr"] for group in walk.opt.param_groups] == [1.0]
        walk.opt.param_groups[0]["lr"] = scale
        moves.append(walk.step([g], 0.5)[0])
    assert np.abs(moves[0]).min() > 0
    np.testing.assert_allclose(moves[1], 0.25 * moves[0], rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["smaran", "l4_mom", "sps", "lion", "adam", "amvt", "adan", "adamw_agr", "lamb", "acprop"]
)
def test_the_scale_of_the_loss_does_not_matter(name: str) -> None:
    """Multiplying the loss, and so its gradients, by 64 changes nothing (but for eps, made harmless here)."""
    eps = {"lion": {}, "sps": {"eps": TINY, "adapt": "constant"}, "acprop": {"eps": TINY, "rectify": False}}.get(
        name, {"eps": TINY}
    )
    problem, start = problems.tanh(), list(problems.tanh().start)
    first = 2 if name == "acprop" else 1  # its first step is a plain gradient step
    walks = [Walk(name, start, **eps) for _ in range(2)]
    for t in range(first, 9):
        loss, grads = problem.numpy([p.detach().numpy() for p in walks[0].params], t)
        if name == "acprop" and t == first:
            for walk, scale in zip(walks, (1.0, 64.0), strict=True):
                walk.opt.param_groups[0]["lr"] = 1e-3 / scale
                walk.step([scale * g for g in grads], scale * loss)
                walk.opt.param_groups[0]["lr"] = 1e-3
            continue
        a, b = walks[0].step(grads, loss), walks[1].step([64 * g for g in grads], 64 * loss)
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)


DECAYS = {
    "adamw_agr": ({}, 0.999),
    "lion": ({}, 0.999),
    "adan": ({"no_prox": True}, 0.999),
    "adan_agr": ({}, 1 / 1.001),
    "adabelief": ({}, 0.999),
    "acprop": ({}, 0.999),
    "amvt": ({"decay": "adamw"}, 0.999),
    "adamw": ({}, 0.999),
    "adan ": ({}, 1 / 1.001),
    "amvt ": ({}, 0.9),
    "adabelief ": ({"fixed_decay": True}, 0.9),
}


@pytest.mark.parametrize("name", DECAYS)
def test_decoupled_decay_shrinks_by_the_papers_factor(name: str) -> None:
    """Without a gradient, weight decay is all there is: lr = 0.01 and weight decay 0.1 make this factor."""
    hyper, factor = DECAYS[name]
    start = np.array([[1.0, -2.0], [0.5, 3.0]])
    walk = Walk(name.strip(), [start], lr=0.01, weight_decay=0.1, **hyper)
    for k in range(1, 4):
        np.testing.assert_allclose(walk.step([np.zeros((2, 2))])[0], start * factor**k, rtol=1e-13)
