"""What the papers prove or promise of their methods, over many gradients."""

from __future__ import annotations

import numpy as np
import problems
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from twins.compare import Ours, Walk, registered

BRIEF = settings(max_examples=20)
NUMBERS = st.floats(-1e3, 1e3).map(lambda v: v if abs(v) > 1e-6 else 0.0)


@st.composite
def gradients(draw: st.DrawFn, steps: int = 6, shape: tuple[int, ...] = (3, 4)) -> np.ndarray:
    """Sequences with zeros, whole steps of zeros, and sizes from 1e-6 to 1e3."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = 10.0 ** random.uniform(-6, 3, (steps, *shape) if draw(st.booleans()) else (steps,) + (1,) * len(shape))
    size = size * (random.uniform(size=(steps, *shape)) > draw(st.sampled_from([0.0, 0.4])))
    return random.normal(size=(steps, *shape)) * size * (random.uniform(size=(steps,) + (1,) * len(shape)) > 0.1)


# --- SMARAN ----------------------------------------


@BRIEF
@given(gradients(12), gradients(12, ()).map(np.abs), st.floats(0.1, 0.99))
def test_smaran_theorems_1_and_2(grads: np.ndarray, losses: np.ndarray, gamma: float) -> None:
    """||m_t|| < 1/(1 - gamma) and 0 <= V < 1 for every sequence of gradients and losses >= 0."""
    walk = Walk("smaran", [np.zeros((3, 2)), np.zeros((3, 2))], gamma=gamma, lr=0.1, weight_decay=0.0)
    before = [np.zeros((3, 2)), np.zeros((3, 2))]
    for g, loss in zip(grads, losses, strict=True):
        after = walk.step([g[:, :2], g[:, 2:]], float(loss))
        big_v = walk.opt.effective_lr()[0] / 0.1
        assert 0 <= big_v < 1 + 1e-15 and (big_v > 0) == (loss > 0)
        move = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(after, before, strict=True)))
        assert move <= 0.1 * big_v / (1 - gamma) * (1 + 1e-12)
        before = after


def test_smaran_theorem_1_fails_by_tensor_and_holds_globally() -> None:
    """With a norm for each of two tensors, the joint norm of m goes to sqrt(2)/(1 - gamma)."""
    g, reach = [np.ones((1, 1)), np.ones((1, 1))], {}
    for scope in ("global", "tensor"):
        walk = Walk("smaran", [np.zeros((1, 1))] * 2, norm_scope=scope, weight_decay=0.0, gamma=0.5)
        before = np.zeros(2)
        for _ in range(40):
            after = np.concatenate([a.ravel() for a in walk.step(g, 1.0)])
            reach[scope], before = np.linalg.norm(after - before) / walk.opt.effective_lr()[0], after
    np.testing.assert_allclose([reach["global"], reach["tensor"]], [2.0, 2.0 * np.sqrt(2)], rtol=1e-7)


@BRIEF
@given(st.floats(1e-3, 1e4), st.floats(0.05, 0.97))
def test_smaran_rate_under_constant_loss(loss: float, gamma: float) -> None:
    """Appendix A.2: V -> sqrt(1 - gamma), whatever the loss."""
    walk = Walk("smaran", [np.zeros(2)], gamma=gamma, lr=1.0)
    for _ in range(int(np.ceil(np.log(1e-9) / np.log(gamma))) + 1):
        walk.step([np.zeros(2)], loss)
    np.testing.assert_allclose(walk.opt.effective_lr()[0], np.sqrt(1 - gamma), rtol=1e-4)


# --- AGR ----------------------------------------


def psi(g: np.ndarray) -> np.ndarray:
    """Our AGR of g, read off one step of SGD(AGR) at rate 1 from the origin."""
    return -Walk("sgd_agr", [np.zeros_like(g)], lr=1.0, agr_scope="all").step([g])[0]


@BRIEF
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=NUMBERS))
def test_agr_shrinks_and_keeps_signs(g: np.ndarray) -> None:
    out = psi(g)
    assert np.isfinite(out).all()
    assert (np.abs(out) <= np.abs(g)).all()
    assert (out * np.sign(g) >= 0).all()
    assert np.linalg.norm(out) <= np.linalg.norm(g)
    if g.size == 1:
        assert (out == 0).all()
    total = np.abs(g).sum()
    if total > 0:  # what is taken away is sum alpha |g| = sum g^2 / sum |g|
        np.testing.assert_allclose(total - np.abs(out).sum(), (g**2).sum() / total, rtol=1e-9, atol=1e-9)


@BRIEF
@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(0.1, 10)), st.floats(0.01, 100))
def test_agr_is_homogeneous_and_its_coefficients_sum_to_one(g: np.ndarray, scale: float) -> None:
    np.testing.assert_allclose(psi(scale * g), scale * psi(g), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose((1 - psi(g) / g).sum(), 1.0, rtol=1e-10)


def test_agr_of_zeros_is_zeros() -> None:
    np.testing.assert_array_equal(psi(np.zeros((3, 2))), np.zeros((3, 2)))


# --- TLR ----------------------------------------


@BRIEF
@given(gradients(8, (2, 3)), st.floats(0.05, 1.0), st.floats(1.01, 100.0), st.integers(1, 3))
def test_tlr_factor_is_bounded(grads: np.ndarray, gamma: float, cap: float, k: int) -> None:
    """Each change of the rate is a factor in [1 - gamma, cap], so that the rate stays positive."""
    walk = Walk("tlr", [np.zeros((2, 3))], base={"name": "sgd", "lr": 0.1}, gamma=gamma, cap=cap, interval=k)
    old = 0.1
    for t, g in enumerate(grads, 1):
        walk.step([g])
        new = walk.opt.effective_lr()[0]
        assert (1 - gamma) * (1 - 1e-12) <= new / old <= cap * (1 + 1e-12)
        assert t % k == 0 or new == old
        old = new
        if new < 1e-12:
            break


@BRIEF
@given(st.floats(0.02, 0.9), st.floats(0.1, 10.0))
def test_tlr_undamped_finds_the_curvature(fraction: float, curvature: float) -> None:
    """On a parabola with gamma = 1 the Newton step sets the rate to 1/curvature, and the next step to the minimum."""
    base, x = {"name": "sgd", "lr": fraction / curvature}, 2.0
    walk = Walk("tlr", [np.array([x])], base=base, gamma=1.0, interval=1)
    for _ in range(2):
        x = walk.step([np.array([curvature * x])])[0][0]
    np.testing.assert_allclose(walk.opt.effective_lr()[0], 1 / curvature, rtol=1e-9)
    assert abs(walk.step([np.array([curvature * x])])[0][0]) < 1e-9


def test_tlr_skips_an_interval_at_a_rate_of_zero() -> None:
    """A schedule that stops for one interval: nothing moves, and the rate goes on as if the pause had not been."""
    draw = np.random.default_rng(11)
    grads = [draw.normal(size=3) + 1.0 for _ in range(8)]
    plain, paused = (Walk("tlr", [np.zeros(3)], base={"name": "sgd", "lr": 0.01}, interval=2) for _ in range(2))
    for t, g in enumerate(grads):
        plain.step([g])
        if t == 4:
            group, still = paused.opt.param_groups[0], paused.params[0].detach().numpy().copy()
            rate, group["lr"] = group["lr"], 0.0
            for _ in range(2):
                np.testing.assert_array_equal(paused.step([draw.normal(size=3)])[0], still)
            group["lr"] = rate
        paused.step([g])
    np.testing.assert_allclose(paused.params[0].detach().numpy(), plain.params[0].detach().numpy(), rtol=1e-12)
    assert plain.opt.effective_lr()[0] != 0.01
    np.testing.assert_allclose(paused.opt.effective_lr(), plain.opt.effective_lr(), rtol=1e-12)


# --- AMVT ----------------------------------------


@BRIEF
@given(gradients(5, (3,)))
def test_amvt_identity(grads: np.ndarray) -> None:
    """Algorithm 1's penalised rate is lr / sqrt(vhat + shat + eps)."""
    lr, eps, (b1, b2, b3) = 0.01, 1e-8, (0.9, 0.999, 0.99)
    walk, before = Walk("amvt", [np.zeros(3)], lr=lr), np.zeros(3)
    m = v = s = np.zeros(3)
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        s = b3 * s + (1 - b3) * (g - m) ** 2
        after = walk.step([g])[0]
        alpha = lr / np.sqrt(v / (1 - b2**t) + s / (1 - b3**t) + eps)
        np.testing.assert_allclose(before - after, alpha * m / (1 - b1**t), rtol=1e-9, atol=1e-13)
        before = after


@pytest.mark.parametrize(("momentum", "size"), [("corrected", 0.7432941), ("raw", 0.07432941)])
def test_amvt_first_step(momentum: str, size: float) -> None:
    step = Walk("amvt", [np.zeros(3)], lr=1.0, momentum=momentum).step([np.array([2.0, -5.0, 40.0])])[0]
    np.testing.assert_allclose(step, [-size, size, -size], rtol=1e-6)


# --- baselines ----------------------------------------


@BRIEF
@given(gradients(4, (2, 3)), st.floats(0.0, 0.5))
def test_lamb_moves_by_the_rate_times_the_norm(grads: np.ndarray, decay: float) -> None:
    before = np.arange(1.0, 7.0).reshape(2, 3)
    walk = Walk("lamb", [before], lr=0.01, weight_decay=decay)
    for g in grads:
        after = walk.step([g])[0]
        if np.abs(g).sum() > 0:
            np.testing.assert_allclose(np.linalg.norm(after - before), 0.01 * np.linalg.norm(before), rtol=1e-9)
        before = after


@BRIEF
@given(gradients(4, (2, 3)))
def test_lion_moves_every_element_by_the_rate(grads: np.ndarray) -> None:
    walk, before = Walk("lion", [np.zeros((2, 3))], lr=0.01), np.zeros((2, 3))
    for g in grads:
        after = walk.step([g])[0]
        moved = np.abs(after - before)
        assert (np.isclose(moved, 0.01, rtol=1e-9) | (moved == 0)).all()
        before = after


@BRIEF
@given(gradients(10, (2, 3)))
def test_prodigy_never_lowers_its_estimate(grads: np.ndarray) -> None:
    walk, d = Walk("prodigy", [np.ones((2, 3))], d0=1e-3), 1e-3
    for g in grads:
        walk.step([g])
        assert walk.opt.effective_lr()[0] >= d
        d = walk.opt.effective_lr()[0]


@pytest.mark.parametrize(("name", "c"), [("sls", 0.4), ("ponos", 0.5)])
def test_line_searches_keep_their_promise(name: str, c: float) -> None:
    """Sufficient decrease: f(x - eta g) <= C - c eta ||g||^2, with PoNoS's nonmonotone C, SLS's f."""
    hyper = {"c": c} | ({"zhang_xi": 1.0} if name == "ponos" else {"init_step_size": 20.0})
    registered(name, hyper)
    problem, ours = problems.tanh(), Ours(name, problems.tanh(), **hyper)
    q, reference, shrunk = 0.0, 0.0, 0
    for t in range(1, 25):
        loss, grads = problem.numpy(ours.arrays(), t)
        reference, q = (q * reference + loss) / (q + 1), q + 1
        bound = max(reference, loss) if name == "ponos" else loss
        ours.step(t)
        eta, square = ours.opt.effective_lr()[0], sum((g**2).sum() for g in grads)
        assert problem.numpy(ours.arrays(), t)[0] <= bound - c * eta * square + 1e-12
        shrunk += eta < 20.0 * 2 ** (t / 500) if name == "sls" else eta < min(10.0, loss / (0.1 * square)) * 0.99
    assert shrunk > 0


@BRIEF
@given(gradients(6, (3,)), st.floats(0.01, 0.9), st.floats(0.001, 1.0))
def test_adabound_keeps_its_rates_between_the_bounds(grads: np.ndarray, gamma: float, final: float) -> None:
    """Without momentum every element's step over its gradient is the clipped rate itself."""
    walk, before = Walk("adabound", [np.zeros(3)], gamma=gamma, final_lr=final, betas=(0.0, 0.9)), np.zeros(3)
    for t, g in enumerate(grads, 1):
        after = walk.step([g])[0]
        eta = ((before - after)[g != 0]) / g[g != 0]
        assert (eta >= final * (1 - 1 / (gamma * t + 1)) * (1 - 1e-6)).all()
        assert (eta <= final * (1 + 1 / (gamma * t)) * (1 + 1e-6)).all()
        before = after


def test_sps_keeps_its_step_size_through_a_vanished_gradient() -> None:
    """A gradient below 1e-8 moves nothing and does not put an end to all later steps."""
    walk = Walk("sps", [np.ones(2)])
    walk.step([np.array([1.0, 2.0])], 1.0)
    still = walk.step([np.array([1e-12, 0.0])], 1.0)[0]
    after = walk.step([np.array([1.0, 2.0])], 1.0)[0]
    assert (after != still).all()


def test_decgd_with_ams_never_raises_its_velocity() -> None:
    """The step's factor v* falls or stays: with a gradient that keeps its sign the plain rule would let it swing."""
    walk, x, factors = Walk("decgd", [np.array([1.0])], lr=0.1, ams=True, gamma=0.0), 1.0, []
    for t in range(8):
        new = walk.step([np.array([1.0 if t % 2 else -1.0])], 1.0)[0][0]
        m = (1.0 if t % 2 else -1.0) / (2 * np.sqrt(2.0))
        factors.append((x - new) / (0.2 * m))
        x = new
    assert all(b <= a + 1e-12 for a, b in zip(factors, factors[1:], strict=False))
