"""What a rule writes nowhere is refused before it is lost: `m = m * b + g` trains without momentum, in silence."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from test_plugin import HEAVY_BALL

import hf_optim
from hf_optim import registry
from hf_optim.bases.declarations import check_rule
from hf_optim.bases.optimizer import Optimizer
from hf_optim.check.candidate import Candidate
from hf_optim.errors import UserError

LERP, SLOTS = "m.lerp_(g, c.w)", 'slots = {"m": 0.0}'
MIXES = """

def mixed(old, new, w):
    return old * (1 - w) + new * w


def mix_(old, new, w):
    old.lerp_(new, w)
"""
#: what stands in place of CONTRIBUTING's average -> what its author is told
LOST = {
    "m = m * (1 - c.w) + g * c.w": r"HeavyBall.update, line \d+ of 0_mine.py \(m = .*another tensor.* m.lerp_\(g, ",
    "m = m * (1 - c.w); m.add_(g, alpha=c.w)": "no hook writes the slot 'm', which keeps its first value",
    "m = m * 0.5 if c.w > 0 else m + g": "no hook writes the slot 'm'",
    "m, g = m * 0.9 + g, g * 2": "no hook writes the slot 'm'",
    "m = mixed(m, g, c.w)": "no hook writes the slot 'm'",
    "m = mixed(m, w=c.w, new=g)": "no hook writes the slot 'm'",
    "m = torch.lerp(m, g, c.w)": "no hook writes the slot 'm'",
    "x.add_(m.sqrt().mul_(g))": "HeavyBall: no hook writes the slot 'm'",
}
#: the same, which writes it, or may
KEPT = (
    "m *= 0.9; m += g",
    "m.copy_(m * 0.9 + g)",
    "m = m.mul_(0.9).add_(g)",
    "m[:] = m * 0.9 + g",
    "m[:].add_(g)",
    "mix_(m, g, c.w)",
    "mix_(new=g, w=c.w, old=m)",
    "torch.lerp(m, g, c.w, out=m)",
    "torch.clamp_(m, 0.0, 1.0)",
    "torch.Tensor.mul_(m, 0.9)",
    "torch.nn.functional.relu(m, inplace=True)",
    "getattr(m, 'mul_')(0.9)",
    "r = m; r.lerp_(g, c.w)",
    "(m if c.w else x).lerp_(g, c.w)",
    "m.lerp_(g, c.w) if c.w > 2 else m.sign()",
)
#: (rule, slot): its text gives it another name, so that it may be written by that
ALIASED = {("adafactor", "v"), ("sgd", "momentum_buffer"), *((k, s) for k in ("muon", "soap") for s in "mv")}


def plugin(folder: Path, *changes: tuple[str, str]) -> str:
    text = HEAVY_BALL.replace("from typing import Any\n", "from typing import Any\n\nimport torch\n", 1) + MIXES
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    file = folder / f"{len(list(folder.iterdir()))}_mine.py"  # a file is read once in a process
    file.write_text(text)
    return f"{file}:HeavyBall"


@pytest.mark.parametrize("line", LOST)
def test_a_slot_that_nothing_writes_is_refused(line: str, tmp_path: Path) -> None:
    path = plugin(tmp_path, (LERP, line))
    with pytest.raises(UserError, match=LOST[line]) as error:
        hf_optim.create(path, torch.nn.Linear(2, 2))
    assert "\n" not in str(error.value)
    assert "keeps its first value" in Candidate(path).trouble


@pytest.mark.parametrize("line", KEPT)
def test_whatever_may_write_a_slot_is_taken(line: str, tmp_path: Path) -> None:
    hf_optim.create(plugin(tmp_path, (LERP, line)), torch.nn.Linear(2, 2))


def test_a_parameter_that_nothing_writes_is_refused(tmp_path: Path) -> None:
    path = plugin(tmp_path, ("x.mul_(c.shrink).add_(m, alpha=-c.lr)", "x = x - m * c.lr"))
    with pytest.raises(UserError, match=r"\(x = x - m \* c.lr\): .* no parameter ever moves: `update` has to write x"):
        hf_optim.create(path, torch.nn.Linear(2, 2))


def test_a_copy_of_the_first_weights_may_stay_but_not_be_lost(tmp_path: Path) -> None:
    copied = (SLOTS, 'slots = {"m": "param"}')
    hf_optim.create(plugin(tmp_path, copied, (LERP, "x.lerp_(m, c.w)")), torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="no hook writes the slot 'm'"):
        hf_optim.create(plugin(tmp_path, copied, (LERP, "m = m - g; x.lerp_(m, c.w)")), torch.nn.Linear(2, 2))


def test_memory_that_is_made_anew_is_refused(tmp_path: Path) -> None:
    control = (
        '    @staticmethod\n    def control(h, t, sums, loss, memory):\n        {}\n        return {{"k": 1.0}}\n\n'
    )
    for line, refused in (("memory = {**memory, 'k': 1.0}", True), ("memory['k'] = 1.0", False)):
        declared = (SLOTS, f'{SLOTS}\n    memory = {{"k": 0.0}}')
        hook = ("    @staticmethod\n", control.format(line) + "    @staticmethod\n")
        path = plugin(tmp_path, declared, hook)
        if refused:
            with pytest.raises(
                UserError, match=r"HeavyBall.control, line .*write its entries, as memory\['k'\] = value"
            ):
                hf_optim.create(path, torch.nn.Linear(2, 2))
        else:
            hf_optim.create(path, torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", hf_optim.list_optimizers())
def test_ours_are_taken_and_each_without_its_writes_is_refused(name: str, tmp_path: Path) -> None:
    """A rule's text decides, whatever its flags: `m.lerp_(g, w)` becomes `m = m.lerp(g, w)`, slot by slot."""
    rule = registry.resolve(name)
    if not issubclass(rule, Optimizer):
        pytest.skip("a wrapper has no hooks")
    check_rule(rule)
    if not rule.__module__.endswith(f".{name}"):
        pytest.skip("another one's preset")
    text = inspect.getsource(inspect.getmodule(rule))
    for slot in ("x", *rule.slots):
        lost, number = re.subn(rf"^(\s+){slot}\.(\w+)_\(", rf"\1{slot} = {slot}.\2(", text, flags=re.MULTILINE)
        if number and (name, slot) not in ALIASED:
            (tmp_path / f"{slot}.py").write_text(lost)
            with pytest.raises(UserError, match=f"gives the name {slot} to another tensor"):
                hf_optim.create(f"{tmp_path / slot}.py:{rule.__name__}", torch.nn.Linear(2, 2))
