"""Names, specifications and what is known of them without importing torch."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
from contract import NAMES, Problem
from test_plugin import HEAVY_BALL

import hf_optim
from hf_optim import registry
from hf_optim.core import catalogue
from hf_optim.errors import UserError


def test_wildcards():
    assert {"adamw_agr", "adan_agr", "sgd_agr"} <= set(hf_optim.list_optimizers("*agr*"))
    assert hf_optim.list_optimizers("nothing*") == []


def test_packages_are_found_without_an_import_of_their_own_and_bring_nothing_heavy():
    code = (
        "import sys, hf_optim; assert not hasattr(hf_optim, 'nothing')\n"
        "for name in hf_optim.PACKAGES: assert getattr(hf_optim, name).__name__ == f'hf_optim.{name}'\n"
        "assert set(hf_optim.PACKAGES) <= set(dir(hf_optim)) and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_files_say_is_what_the_classes_are(name):
    info, cls = hf_optim.info(name), registry.resolve(name)
    assert getattr(hf_optim, info.cls.rsplit(".", 1)[1]) is cls
    assert issubclass(cls, torch.optim.Optimizer)
    signature = inspect.signature(cls).parameters
    assert info.defaults == {k: p.default for k, p in signature.items() if k in info.defaults} | info.arguments
    known = {*info.defaults, *info.options, *info.required, "params", "base"}
    assert set(signature) <= known
    if info.family != "wrapper":
        assert info.needs == frozenset(cls.needs) and info.family == cls.family
        assert set(info.search_space) <= {*info.defaults, *info.required}
    assert info.paper and info.doc


def test_info_is_frozen():
    info = hf_optim.info("smaran")
    with pytest.raises(AttributeError):
        info.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        info.defaults["lr"] = 1.0  # type: ignore[index]


@pytest.mark.parametrize(
    "spec, message",
    [
        ("smarn", "did you mean smaran"),
        ("AdamW", r"did you mean adamw\?"),
        ("AGR", "did you mean adamw_agr, adan_agr or sgd_agr"),
        ({"name": "smaran", "gama": 0.9}, "did you mean gamma"),
        ({"name": "tlr"}, "give its base"),
        ({"name": "tlr", "base": {"name": "sgd", "learning_rate": 1}}, "sgd has no hyper-parameter 'learning_rate'"),
        ({"name": "tlr", "base": {"name": "sgd", 1: 2}}, "sgd has no hyper-parameter 1"),
        ({"name": "tlr_sgd", "base": {"name": "adam"}}, "fixes its base"),
        ({"name": "tlr_sgd", "lr": 0.1}, "no hyper-parameter 'lr'"),
        ({"name": "sgd_agr"}, "no default for lr"),
        ({"lr": 1}, "mapping with a 'name'"),
        (3, "mapping with a 'name'"),
    ],
)
def test_bad_specifications_are_one_clear_line(spec, message):
    with pytest.raises(UserError, match=message) as error:
        registry.check_spec(spec)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):
        registry.build(spec, Problem().params)


def test_nested_specifications():
    opt = registry.build(
        {"name": "tlr", "base": {"name": "sgd", "momentum": 0.9, "lr": 0.1}, "gamma": 0.33, "interval": 3},
        Problem().params,
    )
    assert isinstance(opt, hf_optim.TLR) and isinstance(opt.base, hf_optim.SGD)
    assert opt.param_groups[0]["momentum"] == 0.9


def test_any_class_by_import_path(tmp_path):
    opt = hf_optim.create("torch.optim:NAdam", Problem().params, lr=0.01)
    assert type(opt) is torch.optim.NAdam
    file = tmp_path / "mine.py"
    file.write_text("import torch\nclass Mine(torch.optim.SGD):\n    pass\nother = 3\n")
    mine = hf_optim.create(f"{file}:Mine", torch.nn.Linear(2, 2), lr=0.5)
    assert type(mine).__name__ == "Mine" and mine.param_groups[0]["lr"] == 0.5
    wrapped = hf_optim.create("tlr", Problem().params, base={"name": f"{file}:Mine", "lr": 0.1}, interval=2)
    assert type(wrapped.base).__name__ == "Mine"
    for path, message in (
        (f"{file}:Mime", "did you mean Mine"),
        (f"{file}:other", "not a torch.optim.Optimizer"),
        (f"{tmp_path}/none.py:Mine", "there is no file"),
        ("no_such_package:X", "cannot import"),
        ("torch.optim:AdamWW", "has no AdamWW"),
    ):
        with pytest.raises(UserError, match=message):
            hf_optim.create(path, Problem().params)
    with pytest.raises(UserError, match="Mine"):
        hf_optim.create(f"{file}:Mine", Problem().params, learning_rate=3)
    (tmp_path / "two.py").write_text("from neighbour import X\n")
    (tmp_path / "neighbour.py").write_text("X = 3\n")
    with pytest.raises(UserError, match=f"neighbour.py beside it is found with PYTHONPATH={tmp_path}"):
        hf_optim.create(f"{tmp_path}/two.py:Mine", Problem().params)


def test_a_wrapper_takes_an_instance():
    base = torch.optim.Adam(Problem().params)
    assert hf_optim.create("tlr", None, base=base, interval=2).base is base
    with pytest.raises(UserError, match="takes no base"):
        hf_optim.create("smaran", None, base=base)


def test_torchs_class_by_path_is_torchs_own_and_unfused_unless_asked():
    opt = hf_optim.create("torch.optim:AdamW", Problem().params)
    assert type(opt) is torch.optim.AdamW and not opt.param_groups[0]["fused"]
    assert hf_optim.create("torch.optim:AdamW", Problem().params, fused=True).param_groups[0]["fused"]
    with pytest.raises(UserError, match="adamw has no hyper-parameter 'fused'"):
        hf_optim.create("adamw", Problem().params, fused=True)


def test_a_preset_is_its_rule_with_other_arguments():
    opt = hf_optim.create("sgdm", Problem().params)
    assert type(opt) is hf_optim.SGD and opt.param_groups[0]["momentum"] == 0.9
    assert hf_optim.create("sgdm", Problem().params, momentum=0.5).param_groups[0]["momentum"] == 0.5
    assert [hf_optim.info(n).state_bytes for n in ("sgd", "sgdm", "adam", "amsgrad")] == [0, 4, 8, 12]
    with pytest.raises(UserError, match="amsgrad is adam with amsgrad=True, got amsgrad=False: take adam"):
        hf_optim.create("amsgrad", Problem().params, amsgrad=False)
    with pytest.raises(UserError, match="nesterov wants a momentum and no dampening"):
        hf_optim.create("nesterov", Problem().params, momentum=0.0)


@pytest.mark.parametrize("params, message", [([], "empty"), (torch.zeros(3), "one tensor")])
@pytest.mark.parametrize("name", ["smaran", "adamw"])
def test_bad_parameters(name, params, message):
    with pytest.raises(UserError, match=message):
        hf_optim.create(name, params)


def test_rules_refuse_what_they_cannot_train():
    with pytest.raises(UserError, match="complex"):
        hf_optim.create("amvt", [torch.zeros(3, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(UserError, match="finds no tensor to transform"):
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        hf_optim.create("adamw_agr", [p]).step()


def test_unknown_attribute():
    with pytest.raises(AttributeError):
        hf_optim.NoSuchOptimizer  # noqa: B018
    assert "SMARAN" in dir(hf_optim)


def test_published_code_without_groups_decays_everything():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    split = hf_optim.create("adamw", model, weight_decay=0.1)
    whole = hf_optim.create("adamw", model, weight_decay=0.1, decay_all=True)
    assert sorted(group["weight_decay"] for group in split.param_groups) == [0.0, 0.1]
    assert [(group["weight_decay"], len(group["params"])) for group in whole.param_groups] == [(0.1, 4)]
    base = {"name": "sgd", "lr": 0.1, "weight_decay": 0.1, "decay_all": True}
    assert len(hf_optim.create("tlr", model, base=base).param_groups) == 1
    with pytest.raises(UserError, match="decay_all"):
        hf_optim.create("tlr", model, base="sgd", decay_all=True)
    with pytest.raises(UserError, match="true or false"):
        hf_optim.create("adamw", model, decay_all=1)


def test_a_declaration_that_cannot_be_read_is_named(tmp_path):
    """What the registry would not see is no silent default: a computed `needs` would make a loss-aware rule plain."""
    file = tmp_path / "computed.py"
    file.write_text("class Computed(Optimizer):\n    needs = {LOSS}\n\n    def __init__(self, params): ...\n")
    with pytest.raises(UserError, match=r"computed.py:2: needs must be a literal"):
        catalogue.read(file, "optimizers")


@pytest.mark.parametrize(
    "made, message",
    [
        (
            lambda: hf_optim.create("tlr", Problem().params, lr=0.1, base="sgd"),
            r"its base has: base={'name': 'sgd', 'lr': 0.1}",
        ),
        (lambda: hf_optim.create(torch.nn.Linear(2, 1), "smaran"), "is a model, and the optimizer comes first"),
        (lambda: hf_optim.create("smaran", Problem().params, betas=(0.9, 0.9)), r"'betas'; it has: lr"),
    ],
)
def test_what_stands_in_the_wrong_place_is_said_where_it_belongs(made, message):
    with pytest.raises(UserError, match=message):
        made()


def test_a_class_without_a_docstring_has_none(tmp_path):
    (tmp_path / "bare.py").write_text("import torch\n\nclass Bare(torch.optim.SGD):\n    pass\n")
    assert registry.about(f"{tmp_path}/bare.py:Bare").doc == "", "not that of torch's base class"


def test_a_rule_that_hands_over_part_of_its_arguments_is_told(tmp_path):
    text = HEAVY_BALL.replace("super().__init__(params, locals())", "super().__init__(params, dict(lr=lr))")
    (tmp_path / "part.py").write_text(text)
    with pytest.raises(UserError, match=r"hands over no beta: let it call super\(\).__init__\(params, locals"):
        hf_optim.create(f"{tmp_path}/part.py:HeavyBall", Problem().params)


def test_a_class_that_says_no_docstring_and_takes_nothing_is_one_line(tmp_path):
    """A file of a stranger's that `info` runs, since reading does not tell: both were a traceback."""
    file = tmp_path / "theirs.py"
    base = 'from torch.optim import SGD\nclass Theirs(SGD):\n    __doc__ = ("a", 5)\n'
    file.write_text(base)
    assert registry.about(f"{file}:Theirs").doc == ""
    file.with_name("none.py").write_text(f"{base}    def __init__():\n        pass\n")
    with pytest.raises(UserError, match=r"none.py:Theirs does not say what it is made from: invalid method signature"):
        registry.about(f"{file.with_name('none.py')}:Theirs")
