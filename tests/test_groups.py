"""A model given instead of parameters: decay by module type, embeddings outside AGR."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hf_optim
from hf_optim.core.groups import decays, split
from hf_optim.errors import UserError


class RMSNorm(nn.Module):
    """A hand-written norm, as many models have."""

    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.bn, self.gn, self.ln, self.rms = nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), RMSNorm(4)
        self.fc = nn.Linear(4, 10)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_norms_and_biases_do_not_decay_whatever_their_shape():
    decay = decays(Net())
    assert {n for n, d in decay.items() if not d} == {
        "conv.bias",
        "bn.weight",
        "bn.bias",
        "gn.weight",
        "gn.bias",
        "ln.weight",
        "ln.bias",
        "rms.weight",
        "fc.bias",
        "head.bias",
    }
    assert not any(n.startswith("frozen") for n in decay)


def test_every_trainable_parameter_exactly_once():
    net = Net()
    groups = split(net, 0.1, opt_out="agr")
    claimed = [p for g in groups for p in g["params"]]
    assert len(claimed) == len(set(claimed)) and set(claimed) == {p for p in net.parameters() if p.requires_grad}
    assert [g.get("agr") for g in groups if any(p is net.embed.weight for p in g["params"])] == [False]
    assert {g["weight_decay"] for g in groups} == {0.0, 0.1}


def test_a_rule_without_decay_gets_one_group():
    assert len(split(Net(), None)) == 1


def test_create_from_a_model():
    net = Net()
    opt = hf_optim.create("adamw_agr", net, weight_decay=0.3)
    assert {g["weight_decay"] for g in opt.param_groups} == {0.0, 0.3}
    plain = hf_optim.create("amvt", net, weight_decay=0.3)
    assert all("agr" not in g for g in plain.param_groups)
    assert len(hf_optim.create("adamw", net).param_groups) == 2


def test_agr_leaves_embeddings_and_vectors_alone():
    torch.manual_seed(0)
    net = Net()
    opt = hf_optim.create("sgd_agr", net, lr=1.0)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for p in net.parameters():
        if p.requires_grad:
            p.grad = torch.randn_like(p)
    opt.step()
    for name, p in net.named_parameters():
        if not p.requires_grad:
            continue
        raw = torch.allclose(p, before[name] - p.grad, atol=1e-6)
        assert raw == (name not in ("conv.weight", "fc.weight"))


def test_a_frozen_model_is_refused():
    with pytest.raises(UserError, match="no trainable parameter"):
        split(nn.Linear(2, 2).requires_grad_(False), 0.1)
