"""What a rule's constructor declares is what it takes: its signature tells the hyper-parameters and their kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_optim import registry
from hf_optim.bases.optimizer import Optimizer
from hf_optim.core import validate
from hf_optim.errors import UserError


class Every(Optimizer):
    """A rule with an optional count, a tuple that is no pair of betas, and a local before the shell's constructor."""

    def __init__(
        self, params: Any, lr: float = 0.1, every: int | None = None, nus: tuple[float, float] = (0.7, 1.0)
    ) -> None:
        doubled = 2 * lr  # noqa: F841 - must not become a hyper-parameter
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        return {"lr": h.lr}

    @staticmethod
    def update(x, g, c):
        x.add_(g, alpha=-c.lr)


def create(**hyper: Any) -> Every:
    return Every([torch.nn.Parameter(torch.ones(3))], **hyper)


def test_a_local_is_no_hyper_parameter():
    opt = create(every=3)
    assert opt.defaults == {"lr": 0.1, "every": 3, "nus": (0.7, 1.0)}
    opt.param_groups[0]["params"][0].grad = torch.ones(3)
    opt.step()
    torch.testing.assert_close(opt.param_groups[0]["params"][0].data, torch.full((3,), 0.9))


@pytest.mark.parametrize("value", ["soon", 1.5, True, [1]])
def test_an_optional_count_takes_whole_numbers_only(value):
    with pytest.raises(UserError, match="every must be a"):
        create(every=value)


def test_a_tuple_is_not_taken_for_betas():
    assert create(nus=(1.5, -2.0)).defaults["nus"] == (1.5, -2.0)
    with pytest.raises(UserError, match="nus must be 2 numbers"):
        create(nus=0.7)


def test_kinds_are_read_from_annotations():
    def rule(self, a: int, b: int | None = None, c: float | None = None, d: bool = False, e: tuple[int, int] = (1, 2)):
        pass

    assert validate.whole_numbers(rule) == {"a", "b"}


RESTARTED = [name for name in registry.list_optimizers() if "restart_every" in registry.info(name).defaults]


@pytest.mark.parametrize("name", RESTARTED)
def test_every_count_of_ours_refuses_words(name):
    with pytest.raises(UserError, match="restart_every must be a number, got 'soon'"):
        registry.create(name, [torch.nn.Parameter(torch.ones(3))], restart_every="soon")


WITH_KERNELS = [name for name in registry.list_optimizers() if "compile" in registry.info(name).options]


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_no_kernels_where_none_are_asked_for(name):
    required = {"lr": 0.1} if "lr" in registry.info(name).required else {}
    opt = registry.create(name, torch.nn.Linear(3, 2), compile=False, **required)
    assert opt.execution == "blocks: compile=False"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"compile": "yes"}, r"adamw: compile must be None, True or False, got 'yes'"),
        ({"compile": 1}, r"compile must be None, True or False, got 1"),
        ({"state_dtype": torch.bfloat16}, r"state_dtype must be None, 'fp32', 'bf16' or 'int8', got torch.bfloat16"),
        ({"state_dtype": ["bf16"]}, r"state_dtype must be .*got \['bf16'\]"),
    ],
)
def test_options_of_the_shell_take_their_values_only(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        registry.create("adamw", [torch.nn.Parameter(torch.ones(3))], **given)


def test_a_loss_is_skipped_or_raised() -> None:
    with pytest.raises(UserError, match="on_bad_loss must be 'raise' or 'skip', got None"):
        registry.create("smaran", [torch.nn.Parameter(torch.ones(3))], on_bad_loss=None)
