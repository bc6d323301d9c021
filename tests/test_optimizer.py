"""The contract of every registered optimizer, parametrised over the registry."""

from __future__ import annotations

import copy
import io
import pickle

import contract
import pytest
import torch
from contract import FAMILY, LOSS_AWARE, NAMES, OURS, Problem, make, run, step
from torch.utils._python_dispatch import TorchDispatchMode

import hf_optim
from hf_optim.engine import kernels
from hf_optim.engine.fallback import limits
from hf_optim.errors import BadCheckpoint, BadLoss, MissingLoss, UserError


def equal(a: Problem, b: Problem) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.params, b.params, strict=True))


def reload(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_descends_on_a_convex_problem(name):
    problem = Problem()
    before = float(problem.loss().detach())
    # a rate fitted to two steps overshoots
    often = {"interval": 10} if "interval" in hf_optim.info(name).defaults else {}
    run(name, 40, problem, **often)
    assert float(problem.loss().detach()) < before


@pytest.mark.parametrize("name", NAMES)
def test_resume_is_bit_identical(name):
    whole, _ = run(name, 9)
    half, opt = run(name, 5)
    resumed = make(name, half.params)
    resumed.load_state_dict(reload(opt.state_dict()))
    run(name, 9, half, resumed, start=5)
    assert equal(whole, half)


@pytest.mark.parametrize("name", OURS)
def test_a_loaded_state_is_not_shared(name):
    problem, opt = run(name, 5)
    other = Problem()
    second = make(name, other.params)
    second.load_state_dict(opt.state_dict())
    mine, theirs = (
        {t.data_ptr() for s in o.state.values() for t in s.values() if isinstance(t, torch.Tensor)}
        for o in (opt, second)
    )
    assert not mine & theirs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike(name, how):
    problem, opt = run(name, 5)
    twin, second = how((problem, opt))
    run(name, 9, problem, opt, start=5)
    run(name, 9, twin, second, start=5)
    assert equal(problem, twin)


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_of_zero_moves_nothing(name):
    problem = Problem()
    opt = make(name, problem.params)
    for group in opt.param_groups:
        group["lr"] = 0.0
        if name.startswith("amvt"):  # its decay is free of the rate, as the paper prints it
            assert group["weight_decay"] == 0
    before = problem.copy()
    for t in range(3):
        step(opt, lambda t=t: problem.loss(t))
    assert all(torch.equal(x, y) for x, y in zip(before, problem.params, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_step_returns_the_loss(name):
    problem = Problem()
    given = step(make(name, problem.params), problem.loss)
    assert float(given.detach()) == pytest.approx(float(Problem().loss().detach()))


@pytest.mark.parametrize("name", NAMES)
def test_effective_rate_has_a_number_a_group(name):
    problem = Problem()
    opt = make(name, [{"params": problem.params[:2]}, {"params": problem.params[2:]}])
    run(name, 3, problem, opt)
    rates = opt.effective_lr()
    assert len(rates) == len(opt.param_groups) >= 2 and all(isinstance(r, float) and r >= 0 for r in rates)
    assert all(isinstance(v, float) for v in opt.figures().values())


@pytest.mark.parametrize("name", OURS)
def test_kernels_blocks_lists_and_single_calls_agree(name):
    shapes = ((40, 30), (30,), (1,))
    results = []
    for way in ({}, {"kernels": False}, {"kernels": False, "block": 101}, {"kernels": False, "blocked": frozenset()}):
        with limits(**way):
            problem = Problem(torch.float64, shapes)
            run(name, 6, problem)
        results.append(problem)
    for other in results[1:]:
        for a, b in zip(results[0].params, other.params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OURS)
def test_memory_layout_does_not_matter(name):
    shape = (6, 4, 3, 3)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        problem = Problem(torch.float64, (shape, (5,)))
        problem.params[0].data = problem.params[0].data.contiguous(memory_format=layout)
        run(name, 4, problem)
        results.append(problem)
    for a, b in zip(results[0].params, results[1].params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OURS)
def test_bf16_parameters_keep_fp32_state_even_after_a_load(name):
    problem = Problem(torch.bfloat16)
    _, opt = run(name, 3, problem)
    second = make(name, problem.params)
    second.load_state_dict(reload(opt.state_dict()))
    for p in problem.params:
        for slot in type(opt).slots:
            if slot in opt.state[p]:
                assert second.state[p][slot].dtype is torch.float32
                assert torch.equal(second.state[p][slot], opt.state[p][slot])


@pytest.mark.parametrize("name", OURS)
def test_state_is_as_large_as_declared(name):
    problem = Problem()
    _, opt = run(name, 2, problem)
    beside = {"step", *opt.scalar_slots, "L", "R", "QL", "QR"}  # the last: SOAP's sides, of another size
    size = sum(t.numel() * t.element_size() for p in problem.params for k, t in opt.state[p].items() if k not in beside)
    assert size <= hf_optim.info(name).state_bytes * sum(p.numel() for p in problem.params)
    assert size >= (hf_optim.info(name).state_bytes - 4) * sum(p.numel() for p in problem.params)


@pytest.mark.parametrize("name", OURS)
def test_parameters_without_gradients_stay_and_start_late(name):
    problem = Problem()
    opt = make(name, problem.params)
    before = problem.copy()
    for t in range(4):

        def partial(t=t):
            return problem.loss(t) if t >= 2 else ((problem.params[0] - problem.targets[0]) ** 2).mean()

        step(opt, partial)
        if t == 1:
            assert all(torch.equal(a, b) for a, b in zip(before[1:], problem.params[1:], strict=True))
            assert not torch.equal(before[0], problem.params[0])
    steps = [int(opt.state[p]["step"]) for p in problem.params]
    assert steps == [4, 2, 2, 2]


@pytest.mark.parametrize("name", OURS)
def test_groups_have_their_own_rates_and_may_join_late(name):
    problem = Problem()
    opt = make(name, [{"params": problem.params[:1]}])
    run(name, 2, problem, opt)
    opt.add_param_group(
        {"params": problem.params[1:], "lr": 0.0} if "lr" in opt.defaults else {"params": problem.params[1:]}
    )
    if "lr" not in opt.defaults:
        opt.param_groups[1]["lr"] = 0.0
    before = problem.copy()
    run(name, 4, problem, opt, start=2)
    assert not torch.equal(before[0], problem.params[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1:], problem.params[1:], strict=True))


@pytest.mark.parametrize("name", LOSS_AWARE)
def test_a_missing_loss_raises_before_anything_moves(name):
    problem = Problem()
    opt = make(name, problem.params)
    before = problem.copy()
    problem.loss().backward()
    with pytest.raises(MissingLoss, match="attach"):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, problem.params, strict=True))


@pytest.mark.parametrize("name", LOSS_AWARE)
def test_an_idle_step_without_loss_only_makes_state(name):
    """torch's distributed checkpointing makes state that way."""
    problem = Problem()
    opt = make(name, problem.params)
    for group in opt.param_groups:
        group["lr"] = 0.0
    for p in problem.params:
        p.grad = torch.zeros_like(p)
    before = problem.copy()
    opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, problem.params, strict=True))
    assert all(len(opt.state[p]) > 0 and int(opt.state[p]["step"]) == 0 for p in problem.params)


@pytest.mark.parametrize("name", [n for n in LOSS_AWARE if "evaluate" not in hf_optim.info(n).needs])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -3.0])
def test_a_bad_loss_raises_or_is_skipped_and_counted(name, bad):
    problem = Problem()
    opt = make(name, problem.params)
    before = problem.copy()
    problem.loss().backward()
    with pytest.raises(BadLoss):
        opt.step(loss=torch.tensor(bad))
    lenient = make(name, problem.params, on_bad_loss="skip")
    lenient.step(loss=bad)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.params, strict=True))
    assert lenient.figures()["skipped_steps"] == 1


@pytest.mark.parametrize("name", LOSS_AWARE)
def test_a_fed_loss_serves_one_step(name):
    if "evaluate" in hf_optim.info(name).needs:
        pytest.skip("fed together with evaluate by the doors")
    direct, fed = Problem(), Problem()
    run(name, 1, direct)
    opt = make(name, fed.params)
    loss = fed.loss()
    loss.backward()
    opt.feed(loss=loss)
    opt.step()
    assert equal(direct, fed)
    with pytest.raises(MissingLoss):
        opt.step()


@pytest.mark.parametrize("name", [n for n in OURS if hf_optim.info(n).family in ("plain", "transform")])
def test_plain_rules_never_wait_for_the_device(name):
    """No number is read from a tensor, but the step counts and the like, which live on the host."""
    problem, opt = run(name, 2)
    counts = {id(opt.state[p][k]) for p in problem.params for k in ("step", *opt.scalar_slots)}
    if type(opt).control is not hf_optim.core.rule.Rule.control:
        pytest.skip("adapts one global number and synchronises once, as its file declares")
    problem.loss(2).backward()

    class Forbid(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default and id(args[0]) not in counts:
                raise AssertionError("a tensor was read on the host")
            return func(*args, **(kwargs or {}))

    with Forbid():
        opt.step()


@pytest.mark.parametrize("name", OURS)
def test_bad_gradients_are_one_clear_line(name):
    if FAMILY[name] == "line search":
        pytest.skip("covered by the rules without a search; the same shell")
    problem = Problem()
    opt = make(name, problem.params)
    before = problem.copy()
    opt.step(loss=1.0)  # as torch's: nothing to do
    assert all(map(torch.equal, before, problem.copy()))
    problem.params[0].grad = torch.eye(7, 5).to_sparse()
    with pytest.raises(UserError, match="sparse"):
        opt.step(loss=1.0)


@pytest.mark.parametrize("name", NAMES)
def test_misspelt_hyper_parameters_are_named(name):
    with pytest.raises(UserError, match="no hyper-parameter 'learning_rate'"):
        make(name, Problem().params, learning_rate=0.1)


@pytest.mark.parametrize("name", OURS)
def test_values_are_checked(name):
    defaults = hf_optim.info(name).defaults
    for key, value in defaults.items():
        if key in ("lr", "eps", "weight_decay"):
            for wrong in (-1.0, float("nan"), "0.1", None, True):
                with pytest.raises(UserError, match=key):
                    make(name, Problem().params, **{key: wrong})
        elif key == "betas":
            for wrong in ((0.9,), (1.0,) * len(value), 0.9, "0.9,0.99"):
                with pytest.raises(UserError, match="betas"):
                    make(name, Problem().params, betas=wrong)
        elif isinstance(value, bool):
            with pytest.raises(UserError, match=key):
                make(name, Problem().params, **{key: 1.5})
        elif isinstance(value, str):
            with pytest.raises(UserError, match=key):
                make(name, Problem().params, **{key: "nonsense"})


@pytest.mark.parametrize("name", OURS)
def test_what_a_group_may_not_say(name):
    problem = Problem()
    with pytest.raises(UserError, match="parameter group has no hyper-parameter 'leraning_rate'"):
        make(name, [{"params": problem.params, "leraning_rate": 0.1}])
    cls = type(make(name, problem.params))
    for key, values in cls.choices.items():
        default = hf_optim.info(name).defaults[key]
        other = next(v for v in values if v != default)
        with pytest.raises(UserError, match="may not differ"):
            make(name, [{"params": problem.params, key: other}])


@pytest.mark.parametrize("name", NAMES)
def test_foreign_checkpoints_are_refused_and_change_nothing(name):
    problem, opt = run(name, 3)
    before = copy.deepcopy(opt.state_dict())
    foreign = torch.optim.Rprop(problem.params)
    for state in (foreign.state_dict(), {"state": {}}, run("amvt" if name != "amvt" else "adan", 2)[1].state_dict()):
        with pytest.raises(BadCheckpoint):
            opt.load_state_dict(state)
    after = opt.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for key, state in before["state"].items():
        for k, v in state.items():
            now = after["state"][key][k]
            assert torch.equal(v, now) if isinstance(v, torch.Tensor) else v == now


def test_a_checkpoint_of_another_model_is_refused():
    _, opt = run("adamw_agr", 2)
    other = Problem(shapes=((7, 4), (5,), (3, 4, 2), (1,)))
    with pytest.raises(BadCheckpoint, match="another model"):
        make("adamw_agr", other.params).load_state_dict(opt.state_dict())
    with pytest.raises(BadCheckpoint, match="parameter groups"):
        make("adamw_agr", other.params[:2]).load_state_dict(opt.state_dict())


def test_a_checkpoint_with_another_structure_is_refused():
    problem, opt = run("smaran", 2)
    with pytest.raises(BadCheckpoint, match="norm_scope"):
        make("smaran", problem.params, norm_scope="tensor").load_state_dict(opt.state_dict())


@pytest.mark.parametrize("name", ["amvt", "adamw_agr", "smaran"])
def test_bf16_state_is_rounded_without_bias_and_resumes(name):
    shapes = ((40, 30), (30,))
    exact, _ = run(name, 30, Problem(shapes=shapes))
    rounded, opt = run(name, 30, Problem(shapes=shapes), state_dtype="bf16")
    assert all(t.dtype is torch.bfloat16 for p in rounded.params for k, t in opt.state[p].items() if k != "step")
    moved, apart = (
        sum(float((a - b).detach().norm()) for a, b in zip(exact.params, other.params, strict=True))
        for other in (Problem(shapes=shapes), rounded)
    )
    assert 0 < apart < 0.05 * moved
    half, opt = run(name, 4, Problem(shapes=shapes), state_dtype="bf16")
    again = make(name, half.params, state_dtype="bf16")
    again.load_state_dict(reload(opt.state_dict()))
    run(name, 30, half, again, start=4)
    assert equal(rounded, half)


def test_a_slow_second_moment_does_not_stall_in_bf16():
    """Rounded to nearest, v of beta2 = .999 stops growing far below its limit; stochastically it does not."""
    p = torch.nn.Parameter(torch.zeros(4096))
    opt = hf_optim.create("adamw_agr", [p], agr_scope="all", agr_steps=0, state_dtype="bf16", lr=0.0)
    for _ in range(1500):
        p.grad = torch.ones_like(p)
        opt.step()
    assert float(opt.state[p]["v"].float().mean()) == pytest.approx(1 - 0.999**1500, rel=0.03)


@pytest.mark.parametrize("name", [n for n in OURS if "compile" in hf_optim.info(n).options])
def test_kernels_equal_the_rule_as_it_is_written_and_a_new_rate_builds_nothing(name):
    shapes = ((80, 60), (30,), (1,))
    eager, compiled = Problem(shapes=shapes), Problem(shapes=shapes)
    run(name, 4, eager, compile=False)
    opt = make(name, compiled.params, compile=True)
    run(name, 3, compiled, opt)
    built = kernels.build.cache_info().misses
    for group in opt.param_groups:
        group["lr"] = group["lr"] * 1.0
    run(name, 4, compiled, opt, start=3)
    assert opt.execution == "C++ kernels"
    assert kernels.build.cache_info().misses == built
    for a, b in zip(eager.params, compiled.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_contract_covers_every_family():
    assert {"plain", "transform", "loss-aware", "wrapper"} <= set(FAMILY.values())
    assert contract.NAMES == hf_optim.list_optimizers()
