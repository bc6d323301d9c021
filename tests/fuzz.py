"""Any rule over anything that a training loop may hand it: kernels against the rule itself, alone, in float64."""

from __future__ import annotations

from typing import Any

import torch
from contract import make
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from hf_optim.engine.fallback import limits

SHAPES = [(1,), (3,), (17,), (4, 5), (5, 4), (2, 3, 4), (16, 16), (0, 3), (2, 3, 2, 2), (33, 31)]
LAYOUTS = ["plain", "transposed", "expanded", "strided", "misaligned", "negated", "missing", "late", "swapped"]
VALUES = ["usual", "zeros", "tiny", "large"]

tensors = st.lists(
    st.tuples(st.sampled_from(SHAPES), st.sampled_from(LAYOUTS), st.sampled_from(VALUES)), min_size=1, max_size=5
)


def laid(g: torch.Tensor, layout: str) -> torch.Tensor:
    """A gradient with the same numbers (or, expanded, equal ones), laid out otherwise."""
    if layout == "transposed" and g.dim() >= 2:
        return g.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded" and g.numel():
        return g.flatten()[:1].view([1] * g.dim()).expand(g.shape)
    if layout == "strided":
        return torch.stack([g, g], -1)[..., 0]
    if layout == "misaligned":
        return torch.cat([g.new_zeros(1), g.flatten()])[1:].view(g.shape)
    if layout == "negated":
        return torch._neg_view(-g)
    return g


def followed(name: str, cases: list[Any], dtype: torch.dtype, number: int, kernels: bool) -> list[torch.Tensor]:
    """Where five steps lead."""
    g = torch.Generator().manual_seed(number)
    cases = [*cases, ((4, 3), "plain", "usual")]  # some rules need a matrix
    params = [torch.nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)) for shape, *_ in cases]
    scales = {"usual": 1.0, "zeros": 0.0, "tiny": 1e-12, "large": 1e4}
    with limits(kernels=kernels):
        opt = make(name, params)
        for t in range(5):
            grads = []
            for p, (_, layout, value) in zip(params, cases, strict=True):
                grad = (torch.randn(p.shape, generator=g, dtype=torch.float64) * scales[value]).to(dtype)
                absent = (layout == "missing" and t == 2) or (layout == "late" and t < 2)
                grads.append(None if absent else laid(grad, layout))
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
            if t == 3 and cases[0][1] == "swapped":  # a state that came from elsewhere
                opt.state[params[0]] = {k: v.clone() for k, v in opt.state[params[0]].items()}
                params[0].data = params[0].data.clone()
            opt.step(loss=1.0 + 0.1 * t)  # type: ignore[call-arg]
    return [p.detach() for p in params]


def fuzz(name: str, examples: int) -> None:
    """Hold a rule's kernels against the rule as it is written, alone; float64 agrees to rounding, float32 nearly."""

    @seed(0)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(tensors, st.integers(0, 1 << 20))
    def hold(cases: list[Any], number: int) -> None:
        exact = followed(name, cases, torch.float64, number, kernels=False)
        for a, b in zip(followed(name, cases, torch.float64, number, kernels=True), exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, equal_nan=True)

    hold()
