"""Adding something is adding one file: the examples of CONTRIBUTING.md, elsewhere and in a copy of the package."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hf_optim
from hf_optim import registry
from hf_optim.check import outcome
from hf_optim.check.candidate import Candidate
from hf_optim.commands import main as main_module

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(heading: str, language: str) -> str:
    """The first code block of a language under a heading."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    match = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert match, f"CONTRIBUTING.md: no {language} block under {heading!r}"
    return match[1]


HEAVY_BALL = block("Add an optimizer", "python")


def by_hand(x: list[float], steps: int, lr: float, decay: float) -> list[float]:
    m = [0.0] * len(x)
    for _ in range(steps):
        for i, value in enumerate(x):
            m[i] = 0.9 * m[i] + 0.1 * 2 * value
            x[i] = value * (1 - lr * decay) - lr * m[i]
    return x


def test_the_example_is_about_thirty_lines_of_code():
    code = re.sub(r'""".*?"""', "", HEAVY_BALL, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30


def test_a_file_anywhere_is_an_optimizer(tmp_path):
    file = tmp_path / "heavy_ball.py"
    file.write_text(HEAVY_BALL)
    x = torch.tensor([1.0, -2.0, 0.05], dtype=torch.float64, requires_grad=True)
    opt = hf_optim.create(f"{file}:HeavyBall", [x], lr=0.01, weight_decay=0.1)
    for _ in range(20):
        opt.zero_grad()
        (x**2).sum().backward()
        opt.step()
    assert x.tolist() == pytest.approx(by_hand([1.0, -2.0, 0.05], 20, 0.01, 0.1), abs=1e-12)
    assert opt.effective_lr() == [0.01]
    wrapped = hf_optim.create("lookahead", [x], base={"name": f"{file}:HeavyBall", "lr": 0.01}, k=2)
    assert type(wrapped.base).__name__ == "HeavyBall"
    registry.check_spec({"name": "tlr", "base": {"name": f"{file}:HeavyBall"}, "interval": 3})


USE = """
import hf_optim, torch
assert "heavy_ball" in hf_optim.list_optimizers("heavy*")
info = hf_optim.info("heavy_ball")
assert (info.cls, info.family, info.state_bytes) == ("hf_optim.HeavyBall", "plain", 4)
assert dict(info.defaults) == {"lr": 0.1, "beta": 0.9, "weight_decay": 0.0} and "Equation 9" in info.doc
x = torch.tensor([4.0, -9.0], requires_grad=True)
opt = hf_optim.create("heavy_ball", [x], lr=0.5, grad_transform="sign_root")
assert type(opt) is hf_optim.HeavyBall and opt.rule == "heavy_ball"
x.grad = torch.tensor([1.0, -4.0])
opt.step()
assert torch.allclose(x, torch.tensor([3.95, -8.9]))
assert torch.allclose(opt.state[x]["m"], torch.tensor([0.1, -0.2]))
try:
    hf_optim.create("heavy_ball", [x], betas=0.3)
except hf_optim.UserError as error:
    assert "did you mean beta" in str(error)
else:
    raise AssertionError("a misspelt hyper-parameter passed")
print(hf_optim.__file__)
"""


def test_a_file_in_the_folder_is_found_by_name(tmp_path):
    shutil.copytree(ROOT / "hf_optim", tmp_path / "hf_optim", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "hf_optim" / "optimizers" / "heavy_ball.py").write_text(HEAVY_BALL)
    (tmp_path / "hf_optim" / "transforms" / "sign_root.py").write_text(block("Add a gradient transform", "python"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{USE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path))
    listed = subprocess.run(
        [sys.executable, "-m", "hf_optim.commands.main", "list", "heavy*"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
    )
    assert "heavy_ball" in listed.stdout and "Speeding up" in listed.stdout, listed.stderr


def test_the_example_wrapper_wraps_anything(tmp_path):
    file = tmp_path / "forget.py"
    file.write_text(block("Add a wrapper", "python"))
    scope = runpy.run_path(str(file))
    x, y = (torch.tensor([1.0, -2.0], requires_grad=True) for _ in range(2))
    opt = scope["Forget"](torch.optim.SGD([x], lr=0.1, momentum=0.9), k=3)
    plain = torch.optim.SGD([y], lr=0.1, momentum=0.9)
    for t in range(7):
        for z, by in ((x, opt), (y, plain)):
            z.grad = 2 * z.detach()
            by.step()
        if t % 3 == 2:
            plain.state.clear()
        assert torch.equal(x, y)
    with pytest.raises(hf_optim.UserError, match="forget: k must be a whole number"):
        scope["Forget"](plain, k=1.5)


def test_the_example_metric_check_and_command_work(tmp_path, monkeypatch, capsys):
    for name, heading in (("median_error", "Add a metric"), ("repeats", "Add a check"), ("count", "Add a command")):
        (tmp_path / f"{name}.py").write_text(block(heading, "python"))
    metric = runpy.run_path(str(tmp_path / "median_error.py"))["METRIC"](cache_dir=str(tmp_path))
    assert metric.compute(predictions=[1.0, 2.0, 9.0], references=[1.0, 3.0, 3.0]) == {"median_error": 1.0}

    monkeypatch.setattr(outcome, "CHECKS", dict(outcome.CHECKS))
    runpy.run_path(str(tmp_path / "repeats.py"))
    repeats = outcome.CHECKS["repeats"]
    assert outcome.judge(repeats, Candidate("lion")) == (outcome.PASS, "")
    (tmp_path / "noisy.py").write_text(NOISY)
    status, why = outcome.judge(repeats, Candidate(f"{tmp_path}/noisy.py:Noisy"))
    assert status == outcome.FAIL and "elsewhere" in why

    main = runpy.run_path(str(tmp_path / "count.py"))["main"]
    assert main(["adan*"]) == 0 and capsys.readouterr().out == f"{len(hf_optim.list_optimizers('adan*'))}\n"
    assert main_module.commands().keys() >= {"train", "study", "report", "results", "list", "info", "check"}


NOISY = """
import random, torch

class Noisy(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = 0.01 * (1 + random.SystemRandom().random())
        return super().step(closure)
"""


def test_the_example_study_is_one(tmp_path):
    from hf_optim.study.plan import plan, source

    file = tmp_path / "signum.yaml"
    file.write_text(block("Add a study", "yaml"))
    study_plan = plan.expand(source.read(file))
    assert len(study_plan.runs) == 10 and study_plan.baseline == "adamw"


def test_every_file_it_names_exists():
    named = set(re.findall(r"`((?:hf_optim|tests|tasks|scripts|configs)/[\w./-]+)`", TEXT)) | {"scripts/test.sh"}
    for name in named:
        if "NAME" not in name:
            assert (ROOT / name).exists(), name
    for stem in ("smaran", "agr", "centralize"):
        assert list((ROOT / "hf_optim").glob(f"*/{stem}.py"))
