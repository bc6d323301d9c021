"""Optimizers of other makes: as classes, factories and instances, in Python and in a study."""

from __future__ import annotations

import functools
from pathlib import Path

import foreign_factories
import pytest
import torch
from torch import nn

import hf_optim
from hf_optim import registry
from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.training import train
from hf_optim.study.plan import plan, source

HERE = Path(__file__).with_name("foreign_factories.py")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))


def decays(opt: torch.optim.Optimizer) -> list[tuple[float, list[int]]]:
    return [(g["weight_decay"], [p.dim() for p in g["params"]]) for g in opt.param_groups]


def test_a_class_an_import_path_and_ours_decay_the_same_parameters():
    expected = [(0.1, [2, 2]), (0.0, [1, 1, 1, 1])]
    for name in (torch.optim.AdamW, "torch.optim:AdamW", "adamw"):
        assert decays(hf_optim.create(name, model(), lr=0.1, weight_decay=0.1)) == expected
    assert [d for d, _ in decays(hf_optim.create("torch.optim:AdamW", model()))] == [0.01, 0.0]  # its own default
    assert {d for d, _ in decays(hf_optim.create("torch.optim:SGD", model()))} == {0}
    tensors = list(model().parameters())
    assert decays(hf_optim.create(torch.optim.AdamW, tensors)) == [(0.01, [p.dim() for p in tensors])]


def test_an_instance_is_itself():
    opt = torch.optim.SGD(model().parameters(), lr=0.1)
    assert hf_optim.create(opt, None) is opt
    with pytest.raises(UserError, match="SGD is an instance"):
        hf_optim.create(opt, None, lr=0.2)
    with pytest.raises(UserError, match="SGD is an instance"):
        hf_optim.create(opt, model())
    with pytest.raises(UserError, match="a name, a class, a factory or an instance, got int"):
        hf_optim.create(3, model())


def test_a_factory_gets_what_its_arguments_ask_for():
    seen = {}

    def everything(model, named_parameters, groups, params, lr=0.5, weight_decay=0.2):
        seen.update(model=model, named=named_parameters, groups=groups, params=params, decay=weight_decay)
        return torch.optim.SGD(params, lr=lr)

    net = model()
    net[2].bias.requires_grad_(False)
    assert hf_optim.create(everything, net, lr=0.3).param_groups[0]["lr"] == 0.3
    trainable = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    assert seen["model"] is net and seen["decay"] == 0.2
    assert seen["named"] == trainable and seen["params"] == [p for _, p in trainable]
    assert [(g["weight_decay"], len(g["params"])) for g in seen["groups"]] == [(0.2, 2), (0.0, 3)]
    hf_optim.create(everything, net, weight_decay=0.7)
    assert seen["groups"][0]["weight_decay"] == 0.7

    def undecided(groups):
        return torch.optim.AdamW(groups, weight_decay=0.4)

    assert [d for d, _ in decays(hf_optim.create(undecided, model()))] == [0.4, 0.0]


def test_a_factory_is_named_by_its_file_and_works_in_a_wrapper():
    name = f"{HERE}:of_tensors"
    assert hf_optim.create(name, model(), lr=0.3).param_groups[0]["lr"] == 0.3
    wrapped = hf_optim.create("lookahead", model(), base={"name": name, "lr": 0.2})
    assert isinstance(wrapped.base, torch.optim.SGD)
    registry.check_values({"name": "lookahead", "base": {"name": f"{HERE}:torch_muon", "lr": 0.2}})


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("of_tensors", {"rate": 0.1}, "unexpected keyword argument 'rate'.*it takes lr"),
        ("nothing_asked", {}, "must ask for one of model, named_parameters, groups, params"),
        ("no_optimizer", {}, "returned list, not a torch.optim.Optimizer"),
        ("Any", {}, "not a torch.optim.Optimizer class, nor a function"),
        ("of_tensors", {"lr": -1.0}, "Invalid learning rate"),
    ],
)
def test_mistakes_are_one_line(name, hyper, message):
    with pytest.raises(UserError, match=message) as said:
        hf_optim.create(f"{HERE}:{name}", model(), **hyper)
    assert "\n" not in str(said.value)


def test_a_factory_of_models_wants_one_and_the_suite_wants_a_class():
    with pytest.raises(UserError, match="asks for model: give the model"):
        hf_optim.create(foreign_factories.torch_muon, list(model().parameters()))
    from hf_optim.check.candidate import Candidate

    with pytest.raises(UserError, match="is a factory"):
        Candidate(f"{HERE}:torch_muon")


STUDY = """
# Ours beside those of other packages
name: foreign
seeds: 1
baseline: adamw
tasks:
  - {task: vision, model: mlp, size: smoke}
optimizers:
  - {name: adamw, lr: 1e-3}
  - {name: muon, lr: 0.02}
  - {name: "FILE:torch_muon", label: torch's Muon, lr: 0.02}
  - {name: soap, lr: 3e-3}
  - {name: "FILE:soap", label: pytorch_optimizer's SOAP}
  - {name: "FILE:heavyball_muon", label: heavyball's Muon, lr: 0.01}
"""


def test_foreign_ones_beside_ours_in_a_study(tmp_path):
    """The same weights, batches and groups: torch's Muon is ours but for bfloat16, SOAP but for its sorted bases."""
    for package in ("pytorch_optimizer", "heavyball"):
        pytest.importorskip(package)
    import heavyball.utils

    heavyball.utils.compile_mode = None  # it would compile for minutes
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("FILE", str(HERE)))
    losses = {}
    for number, run in enumerate(plan.expand(source.read(file)).runs):
        spec = RunSpec.from_dict(run.spec)
        record = train(spec, tmp_path / str(number), progress=False)
        assert record["status"] == "ok", record["error"]
        routes = {group.get("route") for group in record["groups"]}
        ours = {"muon": {"muon", "adamw"}, "soap": {"soap", "adam"}}
        assert routes == ours.get(spec.optimizer["name"], {None})  # the report shows what went where
        losses[spec.optimizer["name"].replace(str(HERE), "theirs")] = record["metrics"]["train_loss"]
    assert all(loss < 2.2 for loss in losses.values())  # log(10) is 2.3
    assert losses["muon"] == pytest.approx(losses["theirs:torch_muon"], rel=0.02)
    assert losses["soap"] == pytest.approx(losses["theirs:soap"], rel=0.05)


def test_some_arguments_given_leave_a_class_a_class():
    """functools.partial: its groups, names and defaults are the class's."""
    momentum = functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1)
    opt = hf_optim.create(momentum, model(), lr=0.1)
    assert decays(opt) == [(0.1, [2, 2]), (0.0, [1, 1, 1, 1])] and opt.param_groups[0]["momentum"] == 0.9
    with pytest.raises(UserError, match="SGD: .*lrr"):
        hf_optim.create(momentum, model(), lrr=0.1)


def of_groups(groups, lr=0.1, weight_decay=0.0):
    return torch.optim.SGD(groups, lr, weight_decay=weight_decay)


@pytest.mark.parametrize("base", [torch.optim.SGD, of_groups, hf_optim.SGD, "sgd"])
def test_a_wrapper_takes_what_create_takes(base):
    spec = {"name": base, "lr": 0.25, "weight_decay": 0.1}
    opt = hf_optim.create("lookahead", model(), base=spec)
    assert decays(opt) == [(0.1, [2, 2]), (0.0, [1, 1, 1, 1])] and opt.param_groups[0]["lr"] == 0.25
    registry.check_values({"name": "lookahead", "base": spec})
    for wrong in (3, nn.Linear, dict):
        with pytest.raises(UserError, match="an optimizer is a name, a class"):
            hf_optim.create("lookahead", model(), base=wrong)


def test_a_class_of_ours_is_its_name():
    """Its groups, too: embeddings stay out of AGR."""
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    by_name, by_class = hf_optim.create("adamw_agr", net), hf_optim.create(hf_optim.AdamWAGR, net)
    assert len(by_name.param_groups) == 3
    assert [len(g["params"]) for g in by_class.param_groups] == [len(g["params"]) for g in by_name.param_groups]
    assert [g.get("agr") for g in by_class.param_groups] == [g.get("agr") for g in by_name.param_groups]
