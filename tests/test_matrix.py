"""Rules on whole matrices: what goes which way, and what is computed there, against plain computations."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from twins import run

import hf_optim
from hf_optim.core.groups import split
from hf_optim.errors import BadCheckpoint, UserError
from hf_optim.optimizers import muon

SIZES = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 11}


def ways(model: nn.Module, name: str = "muon") -> dict[str, set[str]]:
    by_way: dict[str, set[str]] = {}
    for parameter, way in hf_optim.create(name, model).routes().items():
        by_way.setdefault(way, set()).add(parameter)
    return by_way


# --- routes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_matrices_of_a_language_model_go_by_muon(tied):
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, tie_word_embeddings=tied))
    by_way = ways(model)
    hidden = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    assert by_way["muon"] == {f"transformer.h.0.{name}.weight" for name in hidden}
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= by_way["adamw"]
    assert ("lm_head.weight" in by_way["adamw"]) is not tied
    assert by_way["muon"] | by_way["adamw"] == {name for name, _ in model.named_parameters()}


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.table = nn.Parameter(torch.zeros(9, 4))
        self.stack = nn.Parameter(torch.zeros(2, 3, 4))
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)


def test_convolutions_are_matrices_and_the_last_matrix_is_the_head():
    assert ways(Vision())["muon"] == {"stem.weight", "hidden.weight"}
    frozen = Vision()
    frozen.head.requires_grad_(False)  # as under an adapter: it stays the head
    assert ways(frozen)["muon"] == {"stem.weight", "hidden.weight"}


def test_soap_and_adafactor_take_all_matrices_of_a_model():
    for name, way in (("soap", "soap"), ("adafactor", "factored"), ("mars", "mars")):
        model = Vision()
        expected = {n for n, p in model.named_parameters() if p.dim() >= 2}
        assert ways(model, name)[way] == expected


def test_each_route_has_its_own_numbers_and_biases_no_decay():
    opt = hf_optim.create("muon", Vision(), lr=0.05, weight_decay=0.2, adamw_lr=1e-3, adamw_weight_decay=0.3)
    groups = {(g["route"], g["lr"], g["weight_decay"]): set(g["param_names"]) for g in opt.param_groups}
    assert set(groups) == {("muon", 0.05, 0.2), ("adamw", 1e-3, 0.3), ("adamw", 1e-3, 0.0)}
    assert groups["adamw", 1e-3, 0.0] == {"stem.bias", "norm.weight", "norm.bias", "hidden.bias", "head.bias"}
    assert opt.effective_lr() == [g["lr"] for g in opt.param_groups]
    model = Vision()
    sizes = {way: sum(dict(model.named_parameters())[n].numel() for n in names) for way, names in ways(model).items()}
    assert opt.figures() == {f"{way}_parameters": float(n) for way, n in sizes.items()}


def test_what_is_said_of_the_construction_is_said_once_of_the_same(caplog):
    for width, said in ((2, 1), (2, 1), (3, 2), (2, 2)):
        hf_optim.create("muon", [nn.Parameter(torch.zeros(3, width))])
        hf_optim.create("sps", [nn.Parameter(torch.zeros(3, width))], f_star=0.5)
        lines = [line.message for line in caplog.records]
        assert sum("embeddings and heads" in line for line in lines) == said
        assert sum("f_star = 0.5 has no effect" in line for line in lines) == 1


def test_tensors_go_by_dimensions_and_it_is_said_once(caplog):
    with caplog.at_level(logging.WARNING, "hf_optim"):
        opt = hf_optim.create("muon", [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(3))])
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))]})
    assert [line.message for line in caplog.records if "embeddings and heads" in line.message] == [
        caplog.records[0].message
    ]
    assert list(opt.routes().values()) == ["muon", "adamw", "muon"]
    caplog.clear()
    hf_optim.create("soap", [nn.Parameter(torch.zeros(3, 2))])
    assert not caplog.records  # it takes all matrices anyway


def test_a_group_says_its_route():
    table, matrix = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
    opt = hf_optim.create("muon", [{"params": [table], "route": "adamw", "lr": 0.1}, {"params": [matrix]}])
    assert [(g["route"], g["lr"]) for g in opt.param_groups] == [("adamw", 0.1), ("muon", 0.02)]
    table.grad = matrix.grad = torch.eye(4, 3)
    opt.step()
    assert set(opt.state[table]) == {"step", "m", "v"} and set(opt.state[matrix]) == {"step", "buffer"}
    assert float(table.detach()[0, 0]) == pytest.approx(1 - 0.1 * 0.1 - 0.1, abs=1e-6)  # decay, and AdamW's first step
    with pytest.raises(UserError, match="route must be muon or adamw"):
        hf_optim.create("muon", [{"params": [table], "route": "hidden"}])


def test_a_checkpoint_of_other_routes_is_refused():
    p = nn.Parameter(torch.ones(4, 3))
    p.grad = torch.ones_like(p)
    written = hf_optim.create("muon", [{"params": [p], "route": "adamw"}])
    written.step()
    read = hf_optim.create("muon", [p])
    with pytest.raises(BadCheckpoint, match="went by adamw, here by muon"):
        read.load_state_dict(written.state_dict())
    assert not read.state


def test_split_without_routes_is_as_before():
    groups = split(Vision(), 0.1)
    assert [sorted(g) for g in groups] == [["params", "weight_decay"]] * 2
    assert all(isinstance(p, torch.Tensor) for g in groups for p in g["params"])


# --- what is computed ------------------------------------------------------------------------------------------------


def quintic(s: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 6)])
def test_newton_schulz_moves_singular_values_only(shape):
    """Against the polynomial of the singular values themselves, which LAPACK finds."""
    u = np.random.default_rng(0).normal(size=(3, *shape))
    turned = muon.orthogonal(torch.tensor(u), 5, torch.float64).numpy()
    for a, b in zip(u, turned, strict=True):
        left, s, right = np.linalg.svd(a, full_matrices=False)
        np.testing.assert_allclose(b, left * quintic(s / (np.linalg.norm(a) + 1e-7), 5) @ right, atol=1e-12)
    assert muon.orthogonal(torch.zeros(1, 3, 2), 5, torch.float32).abs().max() == 0


def stepped(name: str, shape: tuple[int, ...], steps: int = 6, dtype: torch.dtype = torch.float64, **hyper):
    draw = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype))
    opt = hf_optim.create(name, [p], **hyper)
    for _ in range(steps):
        p.grad = torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
        opt.step()
    return p.detach(), opt


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_a_convolution_is_the_matrix_of_its_outputs(name):
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, 2, 2, generator=draw, dtype=torch.float64)
    conv, matrix = nn.Parameter(start.clone()), nn.Parameter(start.clone().view(4, 12))
    opts = [hf_optim.create(name, [p]) for p in (conv, matrix)]
    for _ in range(5):
        g = torch.randn(4, 3, 2, 2, generator=draw, dtype=torch.float64)
        for p, opt in zip((conv, matrix), opts, strict=True):
            p.grad = g.clone().view(p.shape)
            opt.step()
    assert not torch.equal(conv, start)
    torch.testing.assert_close(conv.view(4, 12), matrix, rtol=1e-12, atol=1e-12)


def test_bfloat16_iterations_are_close_and_others():
    exact, low = (stepped("muon", (6, 5), ns_dtype=kind)[0] for kind in ("auto", "bf16"))
    apart = float((exact - low).abs().max())
    assert 1e-6 < apart < 0.02


@pytest.mark.parametrize("name", ["muon", "soap", "adafactor"])
def test_bfloat16_parameters_follow_those_of_float32(name):
    """To the rounding of the parameters themselves, 2^-8 of their size a step."""
    exact, _ = stepped(name, (6, 5), dtype=torch.float32)
    low, opt = stepped(name, (6, 5), dtype=torch.bfloat16)
    torch.testing.assert_close(low.float(), exact, rtol=0, atol=6 * 2**-8 * 2)
    assert all(v.dtype is torch.float32 for v in opt.state[opt.param_groups[0]["params"][0]].values())
    with pytest.raises(UserError, match="state_dtype='bf16' would round"):
        hf_optim.create(name, [nn.Parameter(torch.zeros(2, 2))], state_dtype="bf16")


def test_soap_with_two_bases_follows_its_twin():
    """Square gradients have full rank, and so one eigenbasis each side; bases change at steps 1, 4 and 7."""
    start = [np.random.default_rng(1).normal(size=(4, 4))]

    def gradients(x, t):
        return 0.0, [np.random.default_rng(t).normal(size=(4, 4)) + 0.2 * x[0]]

    expected = run("soap", start, gradients, 9, frequency=3, lr=0.02)
    p = nn.Parameter(torch.tensor(start[0]))
    opt = hf_optim.create("soap", [p], frequency=3, lr=0.02)
    for t, (wanted, _) in enumerate(expected, 1):
        p.grad = torch.tensor(gradients([p.detach().numpy()], t)[1][0])
        opt.step()
        np.testing.assert_allclose(p.detach().numpy(), wanted[0], atol=1e-9, err_msg=f"after {t} steps")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("late", [0, 2])
def test_a_bad_gradient_spoils_its_own_matrix_alone(bad, late):
    def trained(bad: float) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        matrices = [nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2)]
        optimizer = hf_optim.create("soap", matrices, frequency=2)
        for step in range(5):
            for p in matrices:
                p.grad = torch.randn(4, 3, generator=generator)
            if step == late:
                matrices[0].grad[1, 1] = bad
            optimizer.step()
        return [p.detach() for p in matrices]

    spoiled, other = trained(bad)
    assert not spoiled.isfinite().any()
    assert torch.equal(other, trained(0.0)[1])


def test_long_sides_cost_no_state():
    _, opt = stepped("soap", (3, 7), max_dim=5)
    state = opt.state[opt.param_groups[0]["params"][0]]
    assert set(state) == {"step", "m", "v", "L", "QL"} and state["L"].shape == (3, 3)


def test_equal_shapes_make_one_product(monkeypatch):
    seen = []
    original = muon.orthogonal
    monkeypatch.setattr(muon, "orthogonal", lambda u, *more: seen.append(tuple(u.shape)) or original(u, *more))
    params = [nn.Parameter(torch.randn(s)) for s in ((3, 4), (5, 2), (3, 4), (3, 4), (5,))]
    opt = hf_optim.create("muon", params)
    alone = copy.deepcopy(params)
    for p, q in zip(params, alone, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    opt.step()
    assert seen == [(3, 3, 4), (1, 5, 2)]
    for p, q in zip(params, alone, strict=True):
        hf_optim.create("muon", [q]).step()
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


# --- the seam --------------------------------------------------------------------------------------------------------


def test_gradients_are_put_back_even_after_an_error():
    p, q = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
    opt = hf_optim.create("muon", [p, q])
    p.grad, q.grad = torch.randn(3, 4), torch.randn(4)
    kept, values = p.grad, p.grad.clone()
    opt.step()
    assert p.grad is kept and torch.equal(kept, values)
    q.grad = torch.ones(4).to_sparse()
    before = p.detach().clone()
    with pytest.raises(UserError, match="sparse"):
        opt.step()
    assert p.grad is kept and torch.equal(p, before)


def test_pieces_of_fsdp1_are_refused_in_one_line():
    p = nn.Parameter(torch.zeros(6))
    p._fsdp_flattened = True
    p.grad = torch.ones(6)
    with pytest.raises(UserError, match="fully_shard") as refused:
        hf_optim.create("muon", [p]).step()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["cautious_adamw", "cautious_lion"])
def test_a_cautious_step_is_a_thousand_times_longer_at_most(name):
    """One element of 4000 agrees with its gradient: its step is divided by 1/1000, not by 1/4000."""
    p = nn.Parameter(torch.zeros(4000, dtype=torch.float64))
    opt = hf_optim.create(name, [p], lr=1e-3, betas=(0.9, 0.9), weight_decay=0.0)
    p.grad = torch.ones_like(p)
    for _ in range(3):
        opt.step()
    before = p.detach().clone()
    p.grad = torch.full_like(p, -0.01)
    p.grad[7] = 0.01
    opt.step()
    moved = (p.detach() - before).abs()
    assert (moved > 0).nonzero().flatten().tolist() == [7]
    if name == "cautious_lion":
        assert float(moved[7]) == pytest.approx(1e-3 * 1000)


@pytest.mark.parametrize("betas", [(0.9, -1.0), (1.0, 0.95), (0.9, 5.0)])
def test_the_betas_of_what_is_no_matrix_are_betas(betas):
    """In a checkpoint, too."""
    with pytest.raises(UserError, match=r"adamw_betas\[\d\] = .* is outside \[0, 1\)"):
        hf_optim.create("muon", nn.Linear(3, 4), adamw_betas=betas)
    saved = hf_optim.create("muon", nn.Linear(3, 4)).state_dict()
    saved["param_groups"][0]["adamw_betas"] = betas
    with pytest.raises(UserError, match="adamw_betas"):
        hf_optim.create("muon", nn.Linear(3, 4)).load_state_dict(saved)
