"""docs/coming-from.md: every block runs, and where the page says "the same numbers" they are."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = (Path(__file__).parent.parent / "docs" / "coming-from.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in PAGE.split("\n## ")[1:]}


class Regression(torch.nn.Module):
    """A model as Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        out = self.outer(self.norm(self.inner(x)).tanh()).squeeze(-1)
        return {"loss": (out - labels).square().mean(), "logits": out}


def trained(code: str, start: Regression, data: list[dict[str, Any]]) -> list[torch.Tensor]:
    """The weights after the block, and twelve steps where it makes an optimizer."""
    scope: dict[str, Any] = {"model": copy.deepcopy(start), "train_set": data}
    exec(code, scope)
    model = scope["model"]
    for _ in range(12 if "opt" in scope else 0):
        scope["opt"].zero_grad()
        model(torch.stack([row["x"] for row in data]), torch.stack([row["labels"] for row in data]))["loss"].backward()
        scope["opt"].step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("title", SECTIONS)
def test_the_line_before_and_the_line_after(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    part = SECTIONS[title]
    for package in ("timm", "pytorch_optimizer"):
        if f"from {package}" in part:
            pytest.importorskip(package)
    torch.manual_seed(0)
    start = Regression()
    data = [{"x": torch.randn(4), "labels": torch.randn(())} for _ in range(24)]
    blocks = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    ends = [trained(block, start, data) for block in blocks]
    for end in ends:
        assert not all(torch.equal(a, b) for a, b in zip(end, start.parameters(), strict=True))
    same = [torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*ends[:2], strict=True)]
    assert all(same) is ("\nThe same numbers" in part) and len(blocks) >= 2
