"""Optimizers' states, edited: refused in words before anything changes, or stepped with; never a crash."""

import copy
from types import SimpleNamespace

import pytest
import torch
from contract import NAMES, make, step

import hf_optim
from hf_optim.errors import BadCheckpoint, UserError
from hf_optim.experiment.resuming import as_specified

SPARSE, META = torch.ones(3, 3).to_sparse(), torch.empty((), device="meta")
#: of whatever shape a tensor has, another that no rule can use
TENSORS = {
    "meta": lambda t: torch.empty_like(t, device="meta"),
    "more": lambda t: torch.zeros(*t.shape, 1),
    "less": lambda t: torch.zeros(0),
    "sparse": lambda t: torch.ones(t.shape or (1,)).to_sparse(),
    "csr": lambda t: SPARSE.to_sparse_csr(),
    "nested": lambda t: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)]),
    "quantised": lambda t: torch.quantize_per_tensor(torch.ones(t.shape), 0.1, 0, torch.qint8),
    "complex": lambda t: torch.zeros(t.shape, dtype=torch.complex64),
    "whole": lambda t: torch.zeros(t.shape, dtype=torch.int64),
    "text": lambda t: "x",
    "list": lambda t: [1.0],
    "mapping": lambda t: {"a": 1},
    "huge": lambda t: 10**400,
}
NUMBERS = {"meta": META, "sparse": SPARSE, "complex": torch.tensor(1j), "huge": 10**400, "text": "x", "mapping": {}}


def _trained(name):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 2))
    x = torch.randn(8, 6)
    optimizer = make(name, model)
    for _ in range(3):
        step(optimizer, lambda: model(x).square().mean())
    return model, optimizer, x


def _written(value):
    """All of a state dict, to the last bit."""
    if isinstance(value, dict):
        return [(key, _written(entry)) for key, entry in value.items()]
    if isinstance(value, list):
        return [_written(entry) for entry in value]
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return repr(value)


def _edits(saved):
    first = next(iter(saved["state"]), None)
    for key, value in saved["state"].get(first, {}).items():
        for what, changed in TENSORS.items():
            # a count may be a whole number, and of one dimension
            if isinstance(value, torch.Tensor) and not (what in ("more", "whole") and value.numel() == 1):
                other = changed(value)
                yield f"{key} {what}", lambda s, key=key, other=other: s["state"][first].__setitem__(key, other)
    for key, value in saved["param_groups"][0].items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not key.startswith("initial"):
            for what, other in NUMBERS.items():
                yield f"{key} {what}", lambda s, key=key, other=other: s["param_groups"][0].__setitem__(key, other)
    if "hf_optim_names" in saved["param_groups"][0]:
        for other in (3, META, torch.ones(2), [{}, {}], "ab"):
            for key in {"hf_optim_names", "wrapped_by"} & set(saved["param_groups"][0]):
                yield key, lambda s, key=key, other=other: s["param_groups"][0].__setitem__(key, other)
    for other in (3, META, None, [], "ab"):
        yield "group", lambda s, other=other: s["param_groups"].__setitem__(0, other)
        yield "groups", lambda s, other=other: s.__setitem__("param_groups", other)
        yield "states", lambda s, other=other: s.__setitem__("state", other)


@pytest.mark.parametrize("name", NAMES)
def test_an_edited_state_is_refused_before_anything_changes(name):
    _, optimizer, _ = _trained(name)
    saved = optimizer.state_dict()
    before = _written(saved)
    for what, edit in _edits(saved):
        damaged = copy.deepcopy(saved)
        edit(damaged)
        with pytest.raises(BadCheckpoint) as refused:
            optimizer.load_state_dict(damaged)
            pytest.fail(f"{what} was taken")
        assert len(str(refused.value)) < 600, what
        assert _written(optimizer.state_dict()) == before, what


@pytest.mark.parametrize("name", NAMES)
def test_what_a_group_lacks_is_refused_or_not_needed(name):
    """Of what a rule counts in its groups a step was the first to say so, in a KeyError, or it began anew unsaid."""
    model, optimizer, x = _trained(name)
    saved = optimizer.state_dict()
    rule = type(optimizer)
    own = {*rule.memory, *rule.counted} if isinstance(optimizer, hf_optim.Optimizer) else set()  # wrappers say it
    for key in saved["param_groups"][0].keys() - {"params"}:
        damaged = copy.deepcopy(saved)
        for group in damaged["param_groups"]:
            group.pop(key, None)
        try:
            optimizer.load_state_dict(damaged)
        except BadCheckpoint:
            continue
        assert key not in own, key
        step(optimizer, lambda: model(x).square().mean())
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("schedule_free_adamw", "averaged_steps", -7),
        ("schedule_free_sgd", "weight_sum", -1e9),
        ("schedule_free_sgd", "average", 7.0),
        ("schedule_free_adamw", "lr_max", -0.1),
        ("amvt", "clip", 7.0),
        ("adan", "max_grad_norm", 7.0),
    ],
)
def test_what_no_run_can_count_is_refused(name, key, value):
    """A run went on with it, to other figures and no word; or its step failed."""
    torch.manual_seed(0)
    groups = [{"params": [torch.nn.Parameter(torch.randn(3))]} for _ in range(2)]
    optimizer = hf_optim.create(name, groups, lr=0.1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][1][key] = value
    with pytest.raises(BadCheckpoint, match=key):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(("name", "key", "value"), [("tlr", "tlr_count", 2.5), ("lookahead", "la_count", -1)])
def test_a_wrapper_counts_in_whole_numbers(name, key, value):
    """After a count of 2.5 no window ever ended."""
    _, optimizer, _ = _trained(name)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0][key] = value
    with pytest.raises(BadCheckpoint, match=key):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("name", ["hdk", "tlr_legacy"])
def test_a_rate_that_a_rule_has_taken_below_0_goes_on(name):
    """Nothing keeps these rules' rates above 0, and a run of one may be saved at any step."""
    _, optimizer, _ = _trained(name)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0] |= {"hf_optim_lr_scale": -0.13, "tlr_rate_sum": -0.4}
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["hf_optim_lr_scale"] == -0.13


def going_on(spec):
    """What of a Trainer takes an optimizer's state."""
    optimizer = hf_optim.create(spec, torch.nn.Linear(3, 2))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    args, spending = SimpleNamespace(fp16=False), SimpleNamespace(bounded=False)
    return SimpleNamespace(optimizer=optimizer, lr_scheduler=schedule, args=args, spending=spending)


@pytest.mark.parametrize(("given", "then"), [({}, 0), ({"interval": 3}, 3)], ids=["told of its epochs", "given"])
def test_a_window_is_as_long_as_the_run_has_it(given, then):
    """A checkpoint said how often the rate moves."""
    spec = {"name": "tlr", "base": "sgd", **given}
    trainer, saved = going_on(spec), copy.deepcopy(going_on(spec).optimizer.state_dict())
    for group in saved["param_groups"]:
        group["tlr_interval"] = 7
    with as_specified(trainer, 0):
        trainer.optimizer.load_state_dict(saved)
    assert {group["tlr_interval"] for group in trainer.optimizer.param_groups} == {then}


ADAMW = {"name": "torch.optim:AdamW", "lr": 0.1}


@pytest.mark.parametrize(
    ("spec", "key", "value"),
    [
        ({"name": "hd_adam", "lr": 0.1}, "lr_0", 5.0),
        ({"name": "sgdm", "lr": 0.1, "grad_transform": "agr"}, "agr", False),
        (ADAMW, "betas", (0.5, 0.5)),
        ({"name": "lookahead", "base": ADAMW}, "maximize", True),
        (ADAMW, "nothing of its own", 1),
    ],
)
def test_a_run_goes_on_with_the_settings_of_its_own_wherever_groups_hold_them(spec, key, value):
    """They were only compared where they are hyper-parameters of a rule of ours."""
    trainer, saved = going_on(spec), copy.deepcopy(going_on(spec).optimizer.state_dict())
    with as_specified(trainer, 0):
        trainer.optimizer.load_state_dict(saved)
    for group in saved["param_groups"]:
        group[key] = value
    if key == "nothing of its own":
        with as_specified(trainer, 0):
            trainer.optimizer.load_state_dict(saved)
    else:
        with pytest.raises(UserError, match=f"its optimizer has {key} = .*, and the run "), as_specified(trainer, 0):
            trainer.optimizer.load_state_dict(saved)
