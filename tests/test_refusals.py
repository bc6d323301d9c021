"""What no rule can move is refused where it is handed over, with its reason; what fails leaves all as it was."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from hf_optim import registry
from hf_optim.errors import UserError

NAMES = ("smaran", "lion", "adamw", "sls", "tlr")
HYPER = {"lion": {"lr": 0.1}, "adamw": {"lr": 0.1}, "tlr": {"gamma": 0.3, "base": "sgd", "steps_per_epoch": 2}}


def make(name: str, *params: torch.Tensor) -> torch.optim.Optimizer:
    return registry.create(name, list(params), **HYPER.get(name, {}))


def inference() -> torch.Tensor:
    with torch.inference_mode():
        return nn.Parameter(torch.zeros(3))


WRONG: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "complex": (lambda: nn.Parameter(torch.zeros(2, dtype=torch.complex64)), "dtype torch.complex64"),
    "float8": (
        lambda: nn.Parameter(torch.zeros(2).to(torch.float8_e4m3fn)),
        "float8_e4m3fn, too coarse",
    ),
    "expanded": (lambda: torch.zeros(1).expand(4).detach().requires_grad_(), "gaps or overlaps in memory"),
    "overlapping": (lambda: nn.Parameter(torch.zeros(8).as_strided((3, 3), (1, 1))), "gaps or overlaps in memory"),
    "gaps": (lambda: nn.Parameter(torch.zeros(8)[::2]), "gaps or overlaps in memory"),
    "columns": (lambda: nn.Parameter(torch.zeros(4, 4)[:, :2]), "gaps or overlaps in memory"),
    "sparse": (lambda: nn.Parameter(torch.eye(2).to_sparse()), "layout torch.sparse_coo"),
    "inference": (inference, "was made in inference mode"),
    "meta": (lambda: nn.Parameter(torch.zeros(2, device="meta")), "materialise the model first"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", WRONG)
def test_refused_at_construction_and_as_a_further_group(name: str, kind: str) -> None:
    wrong, message = WRONG[kind]
    with pytest.raises(UserError, match=message):
        make(name, nn.Parameter(torch.zeros(2)), wrong())
    optimizer = make(name, nn.Parameter(torch.zeros(2)))
    with pytest.raises(UserError, match=message):
        optimizer.add_param_group({"params": [wrong()]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", ["adabelief", "adamw", "adamw_agr", "muon", "sls", "smaran"])
@pytest.mark.parametrize("value", [np.array(0.5), np.array([0.5, 0.9]), torch.ones(2), torch.empty((), device="meta")])
def test_an_array_is_no_setting(name: str, value: object) -> None:
    """Where it was looked up among a rule's choices, or in a group's place, it was numpy's or torch's own error."""
    for key in registry.info(name).defaults.keys() - {"lr"}:
        with pytest.raises(UserError, match=key):
            registry.create(name, nn.Linear(2, 2), **{key: value})


def test_a_choice_of_numbers_is_named() -> None:
    with pytest.raises(UserError, match="reset_option must be 0, 1 or 2, got 5"):
        registry.create("sls", nn.Linear(2, 2), reset_option=5)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_share_memory_are_refused(name: str) -> None:
    base = torch.zeros(6)
    with pytest.raises(UserError, match=r"shapes \(4,\) and \(4,\) share memory"):
        make(name, nn.Parameter(base[:4]), nn.Parameter(base[2:]))
    make(name, nn.Parameter(base[:3]), nn.Parameter(base[3:]))
    make(name, nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(4, 3).t()), nn.Parameter(torch.zeros(())))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_a_frozen_tensor_that_no_step_moves_is_refused_with_its_first_gradient(dtype: torch.dtype) -> None:
    """Handed over as it came from `model.parameters()`, which is fine until somebody gives it a gradient."""
    p, frozen = nn.Parameter(torch.ones(2)), torch.ones(2).to(dtype)
    optimizer = make("adamw", p, frozen)
    p.grad = torch.ones(2)
    optimizer.step()
    before = everything(p, optimizer)
    frozen.grad = torch.ones(2).to(dtype)
    with pytest.raises(UserError, match=r"shape \(2,\) is of dtype torch\."):
        optimizer.step()
    assert everything(p, optimizer) == before


def test_parameters_that_torch_swaps_may_be_made_on_the_meta_device() -> None:
    """They stay the same objects when they get their numbers: an optimizer may be made before."""
    model = nn.Linear(2, 2, device="meta")
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        optimizer = make("adamw", *model.parameters())
        model.to_empty(device="cpu")
        nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert (model.weight != 1).all()


def test_an_empty_tensor_may_stand_for_what_another_process_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP1 with original parameters leaves some processes empty ones, DeepSpeed's ZeRO-3 all."""
    sharded = nn.Parameter(torch.zeros(0))
    sharded.ds_id = 0  # type: ignore[attr-defined]
    make("adamw", sharded)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    make("adamw", nn.Parameter(torch.zeros(0)))


def loss_of(p: torch.Tensor) -> torch.Tensor:
    return (p - 3).square().sum()


def stepped(name: str) -> tuple[nn.Parameter, torch.optim.Optimizer, Callable[[], torch.Tensor]]:
    """A parameter after two whole steps."""
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make(name, p)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(p)
        loss.backward()
        return loss.detach()

    for _ in range(2):
        step(name, optimizer, p, closure)
    return p, optimizer, closure


def step(name: str, optimizer: torch.optim.Optimizer, p: nn.Parameter, closure: Callable[[], torch.Tensor]) -> None:
    if name == "sls":
        optimizer.step(closure, evaluate=lambda: loss_of(p))  # type: ignore[call-arg]
    else:
        optimizer.step(closure)


def everything(p: nn.Parameter, optimizer: torch.optim.Optimizer) -> str:
    return repr((p.detach().tolist(), optimizer.state_dict()))


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_that_is_no_number_moves_nothing(name: str) -> None:
    p, optimizer, closure = stepped(name)
    lr = optimizer.param_groups[0]["lr"]
    for bad in (math.nan, math.inf):
        optimizer.param_groups[0]["lr"] = bad
        before = p.detach().clone()
        with pytest.raises(UserError, match=f"lr of parameter group 0 is {bad}"):
            step(name, optimizer, p, closure)
        assert torch.equal(p, before)
    optimizer.param_groups[0]["lr"] = lr
    step(name, optimizer, p, closure)
    assert torch.isfinite(p).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, "fast", None])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
def test_a_learned_rate_of_no_number_moves_nothing_of_a_foreign_base(base: type, bad: object) -> None:
    """torch's own bases look at no rate: NaN was in all parameters, and a text was an error of float()."""
    p = nn.Parameter(torch.ones(2))
    optimizer = registry.create("tlr", [p], base=base([p], lr=0.1), gamma=0.3, interval=1)
    optimizer.param_groups[0]["lr"], p.grad = bad, torch.ones(2)
    before = everything(p, optimizer)
    with pytest.raises(UserError, match=f"lr of parameter group 0 is {bad}"):
        optimizer.step()
    assert everything(p, optimizer) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_inference_mode_is_refused_and_the_next_one_works(name: str) -> None:
    p, optimizer, closure = stepped(name)
    before = everything(p, optimizer)
    with torch.inference_mode(), pytest.raises(UserError, match="inference_mode"):
        optimizer.step(**({} if name in ("adamw", "tlr") else {"loss": torch.tensor(1.0)}))
    assert everything(p, optimizer) == before
    step(name, optimizer, p, closure)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", NAMES)
def test_a_closure_that_fails_leaves_parameters_and_state(name: str, error: type[BaseException]) -> None:
    p, optimizer, closure = stepped(name)
    before = everything(p, optimizer)

    def fails() -> torch.Tensor:
        closure()
        raise error("now")

    with pytest.raises(error):
        step(name, optimizer, p, fails)
    assert everything(p, optimizer) == before
    step(name, optimizer, p, closure)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_line_search_that_is_interrupted_puts_the_parameters_back(error: type[BaseException], calls: int) -> None:
    p, optimizer, closure = stepped("sls")
    before, counted = everything(p, optimizer), 0

    def evaluate() -> torch.Tensor:
        nonlocal counted
        counted += 1
        if counted == calls:
            raise error("now")
        return torch.tensor(1e9)  # no trial is good enough

    with pytest.raises(error):
        optimizer.step(closure, evaluate=evaluate)  # type: ignore[call-arg]
    assert counted == calls and everything(p, optimizer) == before
    step("sls", optimizer, p, closure)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(
    "base",
    [
        {"name": "sgd", "lr": 0.1},
        {"name": "adamw", "lr": 0.1},
        {"name": "lookahead", "k": 1, "base": {"name": "adamw", "lr": 0.1}},
    ],
    ids=lambda base: base["name"],
)
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_a_step_whose_gradients_cannot_be_asked_for_again_is_none(base: dict, scope: str, steps: int) -> None:
    """The exact TLR asks for gradients at both ends of a step: it had moved, and counted, when the second failed."""
    p, failing, calls = nn.Parameter(torch.tensor([1.0, -2.0])), False, 0
    optimizer = registry.create("tlr", [p], base=base, gamma=0.3, interval=1, lookahead=True, scope=scope)

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(p)
        loss.backward()
        if failing and calls % 2 == 0:
            raise KeyboardInterrupt
        return loss.detach()

    for _ in range(steps):
        optimizer.step(closure)
    before, failing = everything(p, optimizer), True
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert everything(p, optimizer) == before
    failing = False
    for _ in range(2):
        optimizer.step(closure)
    moved = everything(p, optimizer)
    # and what follows is what would have followed
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = registry.create("tlr", [p], base=base, gamma=0.3, interval=1, lookahead=True, scope=scope)
    for _ in range(steps + 2):
        optimizer.step(closure)
    assert everything(p, optimizer) == moved


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_in_the_closures_place_and_what_is_no_loss_are_one_line(name):
    p = nn.Parameter(torch.ones(3))
    opt = make(name, p)
    p.grad = torch.ones(3)
    with pytest.raises(UserError, match=r"closure, not a Tensor; a loss goes by its name: step\(loss=loss\)"):
        opt.step(torch.tensor(0.5))
    for loss in (torch.ones(3), "0.5", [0.5]) if "loss" in opt.needs else ():
        with pytest.raises(UserError, match="the loss must be one number"):
            opt.step(loss=loss)
    assert torch.equal(p, torch.ones(3))
