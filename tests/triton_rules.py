"""Every rule by Triton's kernels in the interpreter, on a CPU; `test_triton.py` runs this file in a process of its own.

What a kernel computes for an element is the C++ kernel's to the last bit, and so is everything without sums; sums
differ in their last bits, for chunks have another size. (The interpreter takes a millisecond an operation.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import FAMILY, OURS, Problem, make, run, step

import hf_optim
from hf_optim.check.execution import _Methods, _Operators
from hf_optim.core.reduce import dot
from hf_optim.engine import launch_triton
from hf_optim.engine.device import Device
from hf_optim.engine.fallback import limits
from hf_optim.errors import BadLoss

#: besides every rule's defaults, choices that take other kernels
CHOICES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in OURS),
    ("adan", {"max_grad_norm": 0.1, "weight_decay": 0.1}),
    ("amvt", {"clip": 0.1}),
    ("padam", {"partial": 0.3}),
    ("smaran", {"norm_scope": "tensor"}),
    ("sps", {"adapt": "constant"}),
    ("hd_adam", {"rule": "multiplicative", "weight_decay": 0.1}),
    ("hd_sgd", {"rule": "multiplicative"}),
    ("prodigy", {"slice_p": 2, "weight_decay": 0.1}),
    ("prodigy", {"use_bias_correction": True, "decouple": False, "weight_decay": 0.1}),
    ("decgd", {"ams": True}),
    ("yogi", {"grad_transform": {"name": "agr", "scope": "all"}}),
    ("yogi", {"grad_transform": "centralize"}),
    ("yogi", {"grad_transform": {"name": "normalize", "outliers": 2.0}}),
    ("smaran", {"grad_transform": {"name": "normalize", "scope": "tensor"}}),
    ("adabelief", {"grad_transform": "outlier_filter"}),
]
SHAPES = ((7, 5), (3,))
LOSS = torch.tensor(0.9)
IDS = [name + "".join(f"-{k}={v}" for k, v in hyper.items()) for name, hyper in CHOICES]


def problem(dtype: torch.dtype = torch.float32) -> Problem:
    return Problem(dtype, SHAPES)


def sums(name: str, hyper: dict[str, Any]) -> bool:
    opt = make(name, problem().params, **hyper)
    h = opt._hyper(opt.param_groups[0])
    return (
        bool(opt.measures(h)) or bool(opt.transform is not None and opt.transform.sums) or FAMILY[name] == "line search"
    )


def by_triton(opt: Any) -> None:
    assert opt.execution == "Triton kernels"
    assert (opt._ahead is not None) is ("evaluate" not in opt.needs), "its numbers were not computed on the device"


def reads(opt: Any, more: Callable[[], Any] = lambda: None) -> list[str]:
    """What a step over the gradients of the last one reads on the host, besides the counts that live there. What a
    kernel reads is no matter, nor what the device has sent by itself."""
    states = [state for state in opt.state.values() if isinstance(state, dict)]
    counters = [v for state in states for k, v in state.items() if k in ("step", *getattr(opt, "scalar_slots", ()))]
    operators = _Operators(set(map(id, counters)))
    calls = operators.calls

    def unheard(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            known = len(calls)
            out = f(*arguments, **options)
            del calls[known:]
            return out

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_triton, "_launch", unheard(launch_triton._launch))
        placed = launch_triton.TritonLauncher._place_rows  # of tables that are made on the host, and only sent
        patch.setattr(launch_triton.TritonLauncher, "_place_rows", unheard(placed))
        patch.setattr(Device, "notice", unheard(Device.notice))
        with operators, _Methods(calls, {v.untyped_storage().data_ptr() for v in counters}):
            opt.step(loss=LOSS) if getattr(opt, "needs", None) else opt.step()
            more()
    return calls


def test_a_read_is_seen() -> None:
    _, opt = run("smaran", 2, problem())
    assert reads(opt, torch.ones(()).item) == ["item"]
    assert reads(opt, torch.ones(3).tolist) == ["tolist"]
    assert "item" in reads(opt, lambda: float(opt.param_groups[0]["v"]))


@pytest.mark.parametrize("name", ["lookahead_adam", "tlr_adamw", "tlr_sgd", "lookahead_amvt"])
def test_a_wrapper_waits_for_nothing_within_its_window(name: str) -> None:
    _, opt = run(name, 2, problem(), **({"k": 100} if "lookahead" in name else {"interval": 100}))
    assert reads(opt) == []


@pytest.mark.parametrize(("name", "hyper"), CHOICES, ids=IDS)
def test_rules_equal_cpp_and_wait_for_nothing(
    name: str, hyper: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, opt = run(name, 2, problem(), **hyper)
    by_triton(opt)
    hosted = "evaluate" in opt.needs or opt.stride(opt._hyper(opt.param_groups[0])) > 1 or FAMILY[name] == "matrix"
    assert hosted or reads(opt) == []
    monkeypatch.setenv("HF_OPTIM_KERNELS", "1")
    theirs, other = run(name, 2, problem(), **hyper)
    if not hosted:
        other.step(loss=LOSS) if other.needs else other.step()
    assert other.execution == "C++ kernels"
    for p, q in zip(ours.params, theirs.params, strict=True):
        pairs = [(p, q), *((v, other.state[q][k]) for k, v in opt.state[p].items())]
        for a, b in pairs:
            if sums(name, hyper):
                torch.testing.assert_close(a, b, rtol=3e-5, atol=1e-7)
            else:
                assert torch.equal(a, b)
    expected = other.figures()
    assert opt.figures() == pytest.approx(expected, rel=1e-4)
    saved = opt.state_dict()["param_groups"][0]
    assert all(type(saved[k]) is float for k in opt.memory)
    assert opt.effective_lr() == pytest.approx(other.effective_lr(), rel=1e-4)


@pytest.mark.parametrize("name", ["adan", "amvt", "lamb", "smaran"])
def test_bfloat16_rounds_as_cpp(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, opt = run(name, 2, problem(torch.bfloat16), state_dtype="bf16")
    by_triton(opt)
    monkeypatch.setenv("HF_OPTIM_KERNELS", "1")
    theirs, other = run(name, 2, problem(torch.bfloat16), state_dtype="bf16")
    for p, q in zip(ours.params, theirs.params, strict=True):
        for k, v in opt.state[p].items():
            tolerance = {"rtol": 0.01, "atol": 1e-3} if sums(name, {}) else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(v, other.state[q][k], **tolerance)


@pytest.mark.parametrize("name", ["adan", "lamb"])
def test_int8_is_coded_as_cpp(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, opt = run(name, 2, Problem(shapes=((70, 70),)), state_dtype="int8")
    assert opt.execution.startswith("Triton kernels; m, v")
    monkeypatch.setenv("HF_OPTIM_KERNELS", "1")
    theirs, other = run(name, 2, Problem(shapes=((70, 70),)), state_dtype="int8")
    mine, its = opt.state[ours.params[0]], other.state[theirs.params[0]]
    assert mine["m"].dtype is torch.int8 and mine["v_scale"].shape == (20,)
    for k, v in mine.items():
        if sums(name, {}) and v.dtype.itemsize > 1:
            torch.testing.assert_close(v, its[k], rtol=1e-5, atol=1e-8)
        else:  # a sum's last bit may turn a rounding
            assert (v != its[k]).sum() <= (v.numel() // 1000 if sums(name, {}) else 0), k


# --- what is not known when it is launched ---------------------------------------------------------------------------


def advance(opt: Any, on: Problem, loss: float | None = None) -> None:
    opt.zero_grad()
    value = on.loss()
    value.backward()
    opt.step(loss=value if loss is None else torch.tensor(loss))


def everything(opt: Any) -> list[torch.Tensor]:
    state = [v.clone() for p in opt.param_groups[0]["params"] for v in opt.state[p].values()]
    return [p.detach().clone() for p in opt.param_groups[0]["params"]] + state


@pytest.mark.parametrize("name", ["smaran", "l4_mom", "l4_adam", "sps", "decgd"])
def test_a_bad_loss_moves_nothing_and_is_raised_at_the_next_step(name: str) -> None:
    here = problem()
    opt = make(name, here.params)
    advance(opt, here)
    advance(opt, here)
    before, memory = everything(opt), opt.figures()
    advance(opt, here, math.nan)
    with pytest.raises(BadLoss, match="the loss nan is not finite; nothing was moved"):
        advance(opt, here)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(opt), strict=True)), "moved, or counted"
    assert opt.figures() == memory
    advance(opt, here)
    other = problem()
    smooth = make(name, other.params)
    for _ in range(3):
        advance(smooth, other)
    assert all(torch.equal(a, b) for a, b in zip(everything(smooth), everything(opt), strict=True))


@pytest.mark.parametrize("ask", ["state_dict", "figures", "hear"])
def test_a_bad_loss_is_raised_when_somebody_asks(ask: str) -> None:
    here = problem()
    opt = make("smaran", here.params)
    advance(opt, here)
    advance(opt, here, -1.0)
    with pytest.raises(BadLoss, match="-1 is below 0"):
        getattr(opt, ask)()
    getattr(opt, ask)()


@pytest.mark.parametrize("name", ["smaran", "l4_mom", "decgd"])
def test_skipped_steps_are_counted_and_leave_no_trace(name: str) -> None:
    here, other = problem(), problem()
    opt, smooth = make(name, here.params, on_bad_loss="skip"), make(name, other.params)
    for i in range(4):
        advance(opt, here, math.inf if i in (0, 2) else None)
    for _ in range(2):
        advance(smooth, other)
    assert opt.figures() == {**smooth.figures(), "skipped_steps": 2.0}
    assert all(torch.equal(a, b) for a, b in zip(everything(smooth), everything(opt), strict=True))
    assert opt.state_dict()["param_groups"][0]["skipped_steps"] == 2


def test_memory_is_shown_written_saved_and_loaded() -> None:
    here = problem()
    opt = make("smaran", here.params)
    advance(opt, here)
    group = opt.param_groups[0]
    assert isinstance(group["v"], torch.Tensor)
    assert float(group["v"]) == opt.figures()["v"] > 0
    saved = opt.state_dict()
    other = problem()
    again = make("smaran", other.params)
    with torch.no_grad():
        for p, q in zip(other.params, here.params, strict=True):
            p.copy_(q)
    again.load_state_dict(saved)
    advance(opt, here)
    advance(again, other)
    assert opt.figures() == again.figures()
    group["v"] = 0.0
    advance(opt, here)
    assert opt.figures()["v"] == pytest.approx(opt.figures()["loss"] ** 2)


def test_rates_of_groups_change_without_new_programs() -> None:
    here, other = problem(), problem()
    groups = [{"params": ps[:1], "weight_decay": 0.0} for ps in (here.params, other.params)]
    opt = hf_optim.create("smaran", [groups[0], {"params": here.params[1:]}])
    smooth = hf_optim.create("smaran", [groups[1], {"params": other.params[1:]}])
    known = 0
    for i in range(3):
        for o, on in ((opt, here), (smooth, other)):
            for j, group in enumerate(o.param_groups):
                group["lr"] = 0.1 / (i + j + 1)
            if o is opt:
                step(o, on.loss)
            else:
                with limits(kernels=False):
                    step(o, on.loss)
        programs = sum(map(len, opt._ahead.device._hooks.values()))
        known = programs if i == 0 else known
        assert programs == known, "a schedule made another program"
    for p, q in zip(here.params, other.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


# --- what a step costs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hyper", "launches"),
    [
        ("yogi", {}, 1),  # update
        ("adamw_agr", {"agr_scope": "all"}, 3),  # sum, add up, update
        ("lamb", {}, 3),
        ("adan", {"max_grad_norm": 0.1}, 4),  # the norm of all tensors is a step of its own
        ("lamb", {"grad_transform": {"name": "agr", "scope": "all"}}, 7),
        ("prodigy", {}, 6),  # numbers of the sum, sum, add up, control, numbers, update
        ("smaran", {}, 6),  # the loss, sum, add up, control, numbers, update
    ],
)
def test_launches(name: str, hyper: dict[str, Any], launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    here = problem()
    opt = make(name, here.params, **hyper)
    done: list[Any] = []
    launch = launch_triton._launch
    monkeypatch.setattr(launch_triton, "_launch", lambda kernel, *work: (done.append(kernel), launch(kernel, *work)))
    for _ in range(2):
        for p in here.params:
            p.grad = torch.ones_like(p)
        done.clear()
        opt.step(loss=torch.ones(())) if opt.needs else opt.step()
    assert len(done) == launches


class Plugin(hf_optim.Optimizer):
    """Derives with torch's own methods, as rules of before kernels did."""

    def __init__(self, params: Any, lr: float = 0.1, *, compile: bool = False) -> None:
        super().__init__(params, locals())

    @staticmethod
    def measures(h: Any) -> tuple[str, ...]:
        return ("gg",)

    @staticmethod
    def measure(g: Any, c: Any) -> tuple[Any, ...]:
        return (dot(g, g),)

    @staticmethod
    def scope(h: Any) -> str:
        return "tensor"

    @staticmethod
    def derive(h: Any, sums: Any) -> dict[str, Any]:
        return {"per": sums["gg"].rsqrt().clamp(max=h.lr)}

    @staticmethod
    def update(x: Any, g: Any, c: Any) -> None:
        x.sub_(g * c.per)


def test_a_plugin_that_derives_in_torchs_words() -> None:
    here = problem()
    opt = Plugin(here.params, lr=0.01)
    before = here.copy()
    advance_plain(opt, here)
    assert opt.execution == "Triton kernels"
    for p, x in zip(here.params, before, strict=True):
        torch.testing.assert_close(p, x - p.grad * min(0.01, float(1 / p.grad.norm())))


def advance_plain(opt: Any, on: Problem) -> None:
    opt.zero_grad()
    on.loss().backward()
    opt.step()
