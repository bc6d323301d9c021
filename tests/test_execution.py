"""How a step runs: no tensor falls back in silence, few launches, no temporaries, and no change is missed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import OURS, Problem, make
from fuzz import fuzz
from torch.profiler import ProfilerActivity, profile

import hf_optim
from hf_optim.engine import kernels
from hf_optim.engine.fallback import limits
from hf_optim.errors import UserError

SHAPES = ((6, 5), (6,), (3, 4), (3,), (1,))
NAMES = [n for n in OURS if "evaluate" not in hf_optim.info(n).needs]


@pytest.fixture
def launches(monkeypatch) -> list[str]:
    """What is launched from now on."""
    seen: list[str] = []
    launch, initialise = kernels.Kernel.launch, kernels.Kernel.__init__

    def counted(self, arguments, threads):
        seen.append("run")
        launch(self, arguments, threads)

    def with_gather(self, library):
        initialise(self, library)
        gather = self.gather
        if gather is not None:
            self.gather = lambda *a: (seen.append("gather"), gather(*a))

    monkeypatch.setattr(kernels.Kernel, "launch", counted)
    monkeypatch.setattr(kernels.Kernel, "__init__", with_gather)
    kernels.build.cache_clear()
    yield seen
    kernels.build.cache_clear()


# --- no silent fallback ----------------------------------------------------------------------------------------------


def bert() -> torch.nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForMaskedLM(BertConfig(vocab_size=50, max_position_embeddings=16, **size))


def resnet() -> torch.nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", **sizes)).to(memory_format=torch.channels_last)


def tied_llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=True, **size))


@pytest.mark.parametrize("name", NAMES)
def test_kernels_take_every_tensor_of_real_models(name):
    """A rule that fell back would still be right, only slow, and nobody would know."""
    torch.manual_seed(0)
    for model in (bert(), resnet(), tied_llama()):
        opt = make(name, model)
        for _ in range(2):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            opt.step(loss=1.0)  # type: ignore[call-arg]
        assert opt.execution == "C++ kernels", opt.execution


# --- launches and memory ---------------------------------------------------------------------------------------------

PASSES = [
    ("lion", {}, ["run"]),
    ("amvt", {}, ["run"]),
    ("smaran", {}, ["run", "gather", "run"]),
    ("adamw_agr", {"agr_scope": "all"}, ["run", "gather", "run"]),
    ("prodigy", {}, ["run", "gather", "run"]),
    ("lamb", {}, ["run", "gather", "run"]),
]


@pytest.mark.parametrize(("name", "hyper", "expected"), PASSES, ids=[name for name, *_ in PASSES])
def test_a_step_launches_a_kernel_a_pass_however_many_tensors(name, hyper, expected, launches):
    params = [torch.nn.Parameter(torch.ones(s)) for s in [(30, 20), (70,), (8, 3, 3, 3)] * 20]
    opt = make(name, params, **hyper)
    for t in range(3):
        for p in params:
            p.grad = torch.full_like(p, 0.1 + t)
        launches.clear()
        opt.step(loss=1.0)  # type: ignore[call-arg]
    assert launches == expected


@pytest.mark.parametrize("name", ["adamw_agr", "adan", "smaran", "lamb", "prodigy"])
def test_a_step_holds_no_temporaries(name):
    problem = Problem(shapes=((1000, 1200), (50,)))
    opt = make(name, problem.params)
    for t in range(3):
        opt.zero_grad()
        problem.loss(t).backward()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            opt.step(loss=1.0)  # type: ignore[call-arg]
    held = peak = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert peak < 0.05 * 1_200_050


def test_autograd_notices_a_step():
    w = torch.nn.Parameter(torch.ones(30, 20))
    opt = hf_optim.create("lion", [w])
    loss = (w * w).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- nothing that changed is missed ----------------------------------------------------------------------------------


def walk(problem: Problem, opt: Any, steps: range, change: Callable[[Any, torch.Tensor], None] | None = None) -> None:
    """Steps of a run; `change` does something before each."""
    for t in steps:
        loss = problem.loss(t)
        opt.zero_grad()
        loss.backward()
        if change is not None:
            change(opt, problem.params[0])
        opt.step(loss=loss)


def replaced(opt, first):
    opt.state[first] = {k: v.clone() for k, v in opt.state[first].items()}


def replaced_entry(opt, first):
    opt.state[first]["m"] = torch.zeros_like(first)


def moved_state(opt, first):
    for value in opt.state[first].values():
        value.data = value.data.clone()


def transposed_state(opt, first):
    opt.state[first]["m"] = opt.state[first]["m"].t().contiguous().t()


def state_of_another_dtype(opt, first):
    opt.state[first]["v"] = opt.state[first]["v"].float()


def without_state(opt, first):
    del opt.state[first]


def counted(opt, first):
    opt.state[first]["step"].add_(5)


def moved(opt, first):
    first.data = first.data.clone()


def transposed(opt, first):
    first.data = first.data.t().contiguous().t()


def no_gradient(opt, first):
    first.grad = None


def transposed_gradient(opt, first):
    first.grad = first.grad.t().contiguous().t()


def expanded_gradient(opt, first):
    first.grad = first.grad[:1, :1].expand(first.shape)


def strided_gradient(opt, first):
    first.grad = torch.stack([first.grad, first.grad], -1)[..., 0]


def misaligned_gradient(opt, first):
    first.grad = torch.cat([first.grad.new_zeros(1), first.grad.flatten()])[1:].view(first.shape)


def negated_gradient(opt, first):
    first.grad = torch._neg_view(first.grad)


def out_of_agr(opt, first):
    opt.param_groups[0]["agr"] = False


def another_group(opt, first):
    opt.param_groups[0]["params"].remove(first)
    opt.add_param_group({"params": [first], "lr": 0.3})


CHANGES = [
    replaced, replaced_entry, moved_state, transposed_state, state_of_another_dtype, without_state, counted, moved,
    transposed, no_gradient, transposed_gradient, expanded_gradient, strided_gradient, misaligned_gradient,
    negated_gradient, out_of_agr, another_group,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_between_two_steps_is_noticed(change):
    """Tables that serve again hold on to nothing that they saw before: as the rule does, one tensor at a time."""
    runs = []
    for kernel in (True, False):
        with limits(kernels=kernel):
            problem = Problem(torch.float64, SHAPES)
            opt = make("adamw_agr", problem.params)
            walk(problem, opt, range(3))
            walk(problem, opt, range(3, 4), change)
            walk(problem, opt, range(4, 6))
        runs.append((problem, opt))
    (fast, ours), (alone, others) = runs
    for a, b in zip(fast.params, alone.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert {k: v.sum().item() for k, v in ours.state[a].items()} == pytest.approx(
            {k: v.sum().item() for k, v in others.state[b].items()}, abs=1e-12
        )


def cut_parameter(opt, first):
    first.data = first.data[:4]
    first.grad = None
    first.grad = torch.ones_like(first)


def cut_state(opt, first):
    opt.state[first]["m"].data = opt.state[first]["m"].data[:4]


def cut_gradient(opt, first):
    first.grad.data = first.grad.data[:4]


def missing_entry(opt, first):
    del opt.state[first]["v"]


def entry_of_another_kind(opt, first):
    opt.state[first]["v"] = 3.0


@pytest.mark.parametrize(
    "change", [cut_parameter, cut_state, cut_gradient, missing_entry, entry_of_another_kind], ids=lambda c: c.__name__
)
def test_what_no_kernel_may_see_is_refused_in_words_and_moves_nothing(change):
    problem = Problem(torch.float64, SHAPES)
    opt = make("adamw_agr", problem.params)
    walk(problem, opt, range(3))
    change(opt, problem.params[0])
    before = [p.detach().clone() for p in problem.params]
    for p in problem.params:
        if p.grad is None:
            p.grad = torch.ones_like(p)
    with pytest.raises(UserError, match="shape"):
        opt.step()
    assert all(map(torch.equal, before, [p.detach() for p in problem.params]))


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_gradient_stays_and_the_others_do_not_notice(name):
    runs = []
    for kernel in (True, False):
        with limits(kernels=kernel):
            problem = Problem(torch.float64, SHAPES)
            opt = make(name, problem.params)
            walk(problem, opt, range(3))
            before = problem.params[0].detach().clone()
            walk(problem, opt, range(3, 5), no_gradient)
            assert torch.equal(before, problem.params[0].detach())
            walk(problem, opt, range(5, 8))
        runs.append((problem, opt))
    (fast, ours), (alone, others) = runs
    for a, b in zip(fast.params, alone.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert float(ours.state[a].get("step", 0)) == float(others.state[b].get("step", 0))


@pytest.mark.parametrize("name", ["adamw_agr", "amvt", "prodigy", "lamb"])
def test_tensors_without_elements_are_in_nobodys_way(name):
    params = [torch.nn.Parameter(torch.ones(s)) for s in ((3, 4), (0, 4), (3, 4), (0, 4), (0,), (2,), ())]
    opt = make(name, params)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    assert all(p.isfinite().all() and (p < 1).all() for p in params)


@pytest.mark.parametrize("how", ["deepcopy", "state dict", "saved"])
def test_a_copy_goes_its_own_way(how, tmp_path):
    problem = Problem(torch.float32, SHAPES)
    opt = make("amvt", problem.params)
    walk(problem, opt, range(3))
    other = copy.deepcopy(problem)
    if how == "deepcopy":
        other, second = copy.deepcopy((problem, opt))
    else:
        state = opt.state_dict()
        if how == "saved":
            torch.save(state, tmp_path / "opt.pt")
            state = torch.load(tmp_path / "opt.pt", weights_only=True)
        second = make("amvt", other.params)
        second.load_state_dict(state)
    walk(problem, opt, range(3, 6))
    walk(other, second, range(3, 6))
    for a, b in zip(problem.params, other.params, strict=True):
        assert torch.equal(a, b)
        assert float(opt.state[a]["step"]) == float(second.state[b]["step"]) == 6


def test_a_state_dict_does_not_go_on_counting():
    problem = Problem()
    opt = make("amvt", problem.params)
    walk(problem, opt, range(2))
    saved = opt.state_dict()
    walk(problem, opt, range(2, 4))
    assert {float(state["step"]) for state in saved["state"].values()} == {2.0}


def test_gradients_are_let_go():
    problem = Problem()
    opt = make("amvt", problem.params)
    walk(problem, opt, range(2))
    assert all(not table.columns["g"] for table in opt._steps.tables)


def test_bf16_parameters_lose_nothing_that_compensation_keeps():
    """Steps of a thousandth of the distance between two bf16 numbers add up, to what they add up to in float32."""
    ends, left = {}, {}
    for dtype, state_dtype in ((torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "bf16")):
        p = torch.nn.Parameter(torch.ones(3000, dtype=dtype))
        opt = hf_optim.create("smaran", [p], lr=1e-3, weight_decay=0.0, state_dtype=state_dtype)
        for _ in range(300):
            p.grad = torch.ones_like(p)
            opt.step(loss=1.0)
        ends[dtype, state_dtype] = float(p.detach().float().mean())
        left[dtype, state_dtype] = float(opt.state[p].get("compensation", torch.zeros(1)).float().mean())
    moved = 1 - ends[torch.float32, None]
    assert 0.001 < moved < 0.2
    assert ends[torch.bfloat16, None] == 1  # rounding to nearest takes every step
    kept = torch.bfloat16, "bf16"
    assert 1 - ends[kept] == pytest.approx(moved, abs=2**-9)  # as near as bf16 comes
    assert 1 - ends[kept] - left[kept] == pytest.approx(moved, rel=0.04)  # the state is rounded, too


@pytest.mark.parametrize("name", NAMES)
def test_fuzz(name):
    fuzz(name, examples=20)
