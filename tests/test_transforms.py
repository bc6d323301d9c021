"""Gradient transforms: what each computes, and that any rule takes it as if its gradients had come that way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import contract
import numpy as np
import pytest
import torch

import hf_optim
from hf_optim.core.rule import Transform
from hf_optim.engine.emit_cpp import CHUNK
from hf_optim.errors import UserError
from hf_optim.registry import resolve
from hf_optim.transforms import make, names

ACCEPT = [n for n in contract.OURS if "grad_transform" in hf_optim.info(n).options]
TAKERS = [n for n in ACCEPT if not resolve(n).no_transform]
SHAPES = ((6, 7), (5,), (3, 2, 2), (1,))
Gradients = list[np.ndarray]


def gradients(t: int, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> Gradients:
    """Of step t, with outliers and exact zeros."""
    rng = np.random.default_rng(t)
    drawn = [rng.standard_normal(s) ** 3 for s in shapes]
    drawn[0].flat[:9] = 0.0
    return drawn


def follow(
    name: str,
    change: Callable[[Gradients], Gradients] = lambda g: g,
    steps: int = 6,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
    **hyper: Any,
) -> list[np.ndarray]:
    """Final float64 parameters of a rule on prescribed gradients and losses."""
    rng = np.random.default_rng(99)
    params = [torch.tensor(rng.standard_normal(s), requires_grad=True) for s in shapes]
    opt = contract.make(name, params, **hyper)
    for t in range(1, steps + 1):
        for p, g in zip(params, change(gradients(t, shapes)), strict=True):
            p.grad = torch.tensor(g)
        opt.step(loss=1.0 + 1 / t) if opt.needs else opt.step()
    return [p.detach().numpy() for p in params]


def assert_equal(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-13)


# --- the definitions in NumPy --------------------------------------------------------------------------------------


def rms(gs: Gradients) -> float:
    return np.sqrt(sum((g**2).sum() for g in gs) / sum(g.size for g in gs))


def cut(gs: Gradients, threshold: float) -> Gradients:
    limits = [threshold * np.sqrt((g**2).sum() / max(np.count_nonzero(g), 1)) for g in gs]
    return [np.clip(g, -most, most) for g, most in zip(gs, limits, strict=True)]


def centred(gs: Gradients, least: int = 2) -> Gradients:
    return [g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True) if g.ndim >= least else g for g in gs]


DEFINITIONS: dict[str, tuple[Any, Callable[[Gradients], Gradients]]] = {
    "normalize": ("normalize", lambda gs: [g / (rms(gs) + 1e-12) for g in gs]),
    "normalize by tensor": ({"name": "normalize", "scope": "tensor"}, lambda gs: [g / (rms([g]) + 1e-12) for g in gs]),
    "normalize and filter": (
        {"name": "normalize", "outliers": 2.0},
        lambda gs: [c / (rms(gs) + 1e-12) for c in cut(gs, 2.0)],
    ),
    "filter": ({"name": "outlier_filter", "threshold": 1.5}, lambda gs: cut(gs, 1.5)),
    "centralize": ("centralize", centred),
    "centralize convolutions": ({"name": "centralize", "conv_only": True}, lambda gs: centred(gs, 3)),
}


@pytest.mark.parametrize("case", DEFINITIONS)
@pytest.mark.parametrize("name", TAKERS)
def test_any_rule_takes_it_as_if_its_gradients_had_come_that_way(name, case):
    transform, by_hand = DEFINITIONS[case]
    ended = follow(name, grad_transform=transform)
    assert_equal(ended, follow(name, by_hand))


def test_the_cases_change_something():
    plain = follow("amvt")
    for transform, _ in DEFINITIONS.values():
        assert any(not np.allclose(a, b) for a, b in zip(plain, follow("amvt", grad_transform=transform), strict=True))


@pytest.mark.parametrize("case", ["normalize", "normalize and filter", "filter"])
def test_blocks_do_not_show(case):
    """A tensor of several blocks, beside small ones that share a call."""
    shapes = ((CHUNK * 2 + 3,), (4, 4), (3,))
    transform, by_hand = DEFINITIONS[case]
    assert_equal(
        follow("amvt", grad_transform=transform, shapes=shapes, steps=2),
        follow("amvt", by_hand, shapes=shapes, steps=2),
    )


@pytest.mark.parametrize("name", ["lion", "amvt", "adan"])
def test_normalised_rules_do_not_see_the_scale_of_the_loss(name):
    assert_equal(
        follow(name, lambda gs: [1e6 * g for g in gs], grad_transform="normalize"),
        follow(name, grad_transform="normalize"),
    )


@pytest.mark.parametrize("transform", ["normalize", "outlier_filter", {"name": "normalize", "outliers": 5.0}])
@pytest.mark.parametrize("size", [0.0, 1e-25])
def test_a_vanished_gradient_stays_small(transform, size):
    p = torch.zeros(3, 3, requires_grad=True)
    opt = hf_optim.create("amvt", [p], lr=1.0, grad_transform=transform)
    p.grad = torch.full((3, 3), size)
    opt.step()
    assert torch.isfinite(p).all() and (p.abs() <= 1e-3).all()


def test_the_filter_leaves_ordinary_and_sparse_gradients_alone():
    few = [np.array([[100.0, 1.0], [1.0, 1.0]])]  # 4 elements <= threshold^2: none can be an outlier
    sparse = np.zeros((100, 10))
    sparse[3] = np.linspace(1, 2, 10)
    for gs in (few, [sparse]):
        assert_equal(cut(gs, 5.0), gs)
    shapes = ((2, 2), (100, 10))
    assert_equal(
        follow("lion", lambda _: [few[0], sparse], shapes=shapes, grad_transform="outlier_filter"),
        follow("lion", lambda _: [few[0], sparse], shapes=shapes),
    )


@pytest.mark.parametrize("transform", ["agr", "centralize"])
def test_groups_may_stay_out_of_what_is_made_for_weights(transform):
    p, q = (torch.ones(4, 4, requires_grad=True) for _ in range(2))
    opt = hf_optim.create(
        "amvt", [{"params": [p]}, {"params": [q], "agr": False}], lr=1.0, eps=1.0, grad_transform=transform
    )
    plain = hf_optim.create("amvt", [r := torch.ones(4, 4, requires_grad=True)], lr=1.0, eps=1.0)
    for x in (p, q, r):
        x.grad = torch.arange(16.0).reshape(4, 4)
    opt.step()
    plain.step()
    assert torch.equal(q, r) and not torch.equal(p, r)


def test_a_group_cannot_stay_out_of_what_is_not():
    with pytest.raises(UserError, match="no hyper-parameter .agr."):
        hf_optim.create(
            "amvt", [{"params": [torch.ones(2, 2, requires_grad=True)], "agr": False}], grad_transform="normalize"
        )


def test_embeddings_are_normalised_but_not_regularised():
    embedding = torch.nn.Embedding(3, 2)
    assert [g.get("agr") for g in hf_optim.create("amvt", embedding, grad_transform="agr").param_groups] == [False]
    assert [g.get("agr") for g in hf_optim.create("amvt", embedding, grad_transform="normalize").param_groups] == [None]


# --- AGR where the papers do not put it ----------------------------------------------------------------------------


def psi(g: np.ndarray) -> np.ndarray:
    return g - np.abs(g) / np.abs(g).sum() * g


def test_agr_and_lion():
    by_hand = follow("lion", lambda gs: [psi(g) for g in gs])
    assert_equal(follow("lion", grad_transform={"name": "agr", "scope": "all"}), by_hand)
    matrices = follow("lion", lambda gs: [psi(g) if g.ndim > 1 else g for g in gs])
    assert_equal(follow("lion", grad_transform="agr"), matrices)


@pytest.mark.parametrize("moments", ["first", "all"])
def test_agr_and_amvt(moments):
    """AMVT's second moment and variance see the raw gradient unless moments="all"."""
    rng = np.random.default_rng(99)
    x = [rng.standard_normal(s) for s in SHAPES]
    state = [[np.zeros(s) for _ in range(3)] for s in SHAPES]
    for t in range(1, 7):
        for i, raw in enumerate(gradients(t)):
            g = psi(raw) if raw.ndim > 1 else raw
            second = g if moments == "all" else raw
            m, v, s = state[i]
            m[...] = 0.9 * m + 0.1 * g
            v[...] = 0.999 * v + 0.001 * second**2
            s[...] = 0.99 * s + 0.01 * (second - m) ** 2
            x[i] -= 1e-3 * m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.999**t) + s / (1 - 0.99**t) + 1e-8)
    assert_equal(follow("amvt", grad_transform={"name": "agr", "moments": moments}), x)


def test_agr_inside_tlr():
    """TLR around a rule with AGR is TLR around torch's rule that is handed psi(g)."""
    base = {"name": "sgd_agr", "lr": 0.1, "agr_scope": "all"}
    ended = follow("tlr", base=base, interval=2, steps=9)
    around = {"base": {"name": "sgd", "lr": 0.1}, "interval": 2, "steps": 9}
    assert_equal(ended, follow("tlr", lambda gs: [psi(g) for g in gs], **around))
    assert not np.allclose(ended[0], follow("sgd_agr", lr=0.1, agr_scope="all", steps=9)[0])


@pytest.mark.parametrize("name", ["sps", "sls", "ponos"])
def test_rules_whose_theory_forbids_it_say_so(name):
    with pytest.raises(UserError, match=r"grad_transform"):
        hf_optim.create(name, [torch.zeros(2, 2, requires_grad=True)], grad_transform="normalize")


# --- choosing one --------------------------------------------------------------------------------------------------


def test_names_and_instances():
    assert {"agr", "centralize", "normalize", "outlier_filter"} <= set(names())
    transform = make({"name": "outlier_filter", "threshold": 3})
    assert make(transform) is transform and isinstance(transform, Transform) and transform.threshold == 3.0
    assert make("normalize").spec() != make({"name": "normalize", "outliers": 5.0}).spec()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("centralise", "did you mean centralize"),
        ({"scope": "all"}, "there are: agr"),
        (3, "there are: agr"),
        ({"name": "agr", "scop": "all"}, "'scop'.*did you mean scope"),
        ({"name": "agr", "scope": "some"}, "'matrix' or 'all'"),
        ({"name": "agr", "steps": -1}, "at least 0"),
        ({"name": "agr", "moments": "second"}, "moments"),
        ({"name": "normalize", "scope": "group"}, "'global' or 'tensor'"),
        ({"name": "normalize", "eps": 0}, "eps"),
        ({"name": "normalize", "outliers": 0.5}, "at least 1"),
        ({"name": "outlier_filter", "threshold": True}, "at least 1"),
        ({"name": "outlier_filter", "threshold": "5"}, "at least 1"),
        ({"name": "centralize", "conv_only": 1}, "conv_only"),
    ],
)
def test_bad_transforms_are_one_clear_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        hf_optim.create("lion", [torch.zeros(2, 2, requires_grad=True)], grad_transform=given)
    assert "\n" not in str(caught.value)


def test_a_transform_of_ones_own_by_import_path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from hf_optim import Transform\n\n\nclass Half(Transform):\n    name = 'half'\n\n"
        "    @staticmethod\n    def apply(g, c):\n        return g * 0.5\n"
    )
    by_hand = follow("lion", lambda gs: [g * 0.5 for g in gs])
    assert_equal(follow("lion", grad_transform=f"{file}:Half"), by_hand)
    with pytest.raises(UserError, match="not a hf_optim.Transform class"):
        make("torch.nn:Linear")


@pytest.mark.parametrize(("value", "instead"), [(True, 'opt_out = "agr"'), (False, "leave it out")])
def test_the_former_word_for_an_opt_out_is_not_ignored(value, instead):
    with pytest.raises(UserError, match=f"Former: a transform has no weights_only any more: .*{instead}") as raised:
        type("Former", (Transform,), {"weights_only": value})
    assert "\n" not in str(raised.value)


def test_a_plugin_with_the_former_word_is_refused_in_one_line(tmp_path):
    file = tmp_path / "plugin.py"
    file.write_text(
        "import hf_optim\n\n\nclass Half(hf_optim.Transform):\n    name = 'half'\n    weights_only = True\n"
    )
    with pytest.raises(UserError, match='write opt_out = "agr"') as raised:
        make(f"{file}:Half")
    assert "\n" not in str(raised.value)
