"""The README's code runs as printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


class Regression(torch.nn.Module):
    """A model as Trainer wants it, for the README's second door."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(10, 1)

    def forward(self, x, labels=None):
        out = self.fc(x).squeeze(-1)
        return {"loss": (out - labels).square().mean(), "logits": out}


def test_the_three_doors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) == 3
    scope: dict = {}
    exec(blocks[0], scope)
    assert int(scope["opt"].state[scope["model"].weight]["step"]) == 1
    torch.manual_seed(0)
    scope["train_set"] = [{"x": torch.randn(10), "labels": torch.randn(())} for _ in range(64)]
    scope["model"] = Regression()
    before = scope["model"].fc.weight.detach().clone()
    exec(blocks[1], scope)
    assert not torch.equal(before, scope["model"].fc.weight)
    assert scope["trainer"].state.global_step == 3
    scope["model"] = torch.nn.Linear(10, 1)
    scope["loader"] = torch.utils.data.DataLoader(torch.randn(64, 10), batch_size=8)
    exec(blocks[2], scope)
    assert scope["opt"].param_groups[0]["tlr_count"] == 8


def commands():
    return [c.split("#")[0].strip() for c in re.findall(r"^(hf-optim [^\n]*)", README, flags=re.M)]


@pytest.mark.parametrize("command", [c for c in commands() if c.split()[1] in ("list", "info")])
def test_commands_that_only_read(command, capsys):
    from hf_optim.commands.main import main

    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", [c for c in commands() if c.split()[1] in ("train", "landscape")])
def test_commands_that_run(command, tmp_path, monkeypatch):
    from hf_optim.commands.main import main

    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)[1:]) == 0
    assert list(tmp_path.rglob("record.json")) or list(tmp_path.rglob("*.png"))


def test_every_file_that_is_linked_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
