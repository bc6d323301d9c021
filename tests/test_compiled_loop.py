"""A training step that the user compiles, with `opt.step()` in it, leads where the eager one leads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import make

from hf_optim.engine import fallback


def trained(name: str, backend: str | None, kernels: bool) -> tuple[list[torch.Tensor], Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    x, y = torch.randn(8, 6), torch.randn(8, 1)
    opt = make(name, model.parameters())

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        opt.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        if opt.needs:  # type: ignore[attr-defined]
            opt.step(loss=loss)  # type: ignore[call-arg]
        else:
            opt.step()
        return loss.detach()

    torch._dynamo.reset()
    with fallback.limits(kernels=kernels):
        run = step if backend is None else torch.compile(step, backend=backend)
        losses = [run(x, y) for _ in range(4)]
    return [*losses, *(p.detach() for p in model.parameters())], opt


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["adamw_agr", "smaran", "tlr_adamw", "muon"])
def test_a_compiled_step_leads_where_the_eager_one_leads(name, backend):
    plain, _ = trained(name, None, kernels=True)
    compiled, opt = trained(name, backend, kernels=True)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert "kernels" in opt.execution
    assert float(next(iter(opt.state.values()))["step"]) == 4


def test_a_step_without_kernels_is_left_alone_by_the_compiler_too():
    plain, _ = trained("amvt", None, kernels=False)
    compiled, _ = trained("amvt", "eager", kernels=False)
    assert all(map(torch.equal, plain, compiled))
