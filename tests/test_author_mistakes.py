"""What the author of a rule does wrong is one line: which hook, which name, what to do, in words of the rule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_plugin import HEAVY_BALL

import hf_optim
from hf_optim.check.candidate import Candidate
from hf_optim.check.outcome import NOT, PASS, Verdict
from hf_optim.check.show import matrix
from hf_optim.check.suite import Report, registered
from hf_optim.core.rule import Transform
from hf_optim.engine.fallback import limits
from hf_optim.engine.trace import trace
from hf_optim.errors import UserError

SLOTS, SCALARS, UPDATE = 'slots = {"m": 0.0}', "def scalars(h, t, s):", "def update(x, g, m, c):"
LERP, STATIC = "m.lerp_(g, c.w)", "    @staticmethod\n"
MEASURES = f"{STATIC}    def measures(h):\n        return ('gg',)\n\n"
#: mistake -> (what of CONTRIBUTING's rule becomes what, what its author is told)
DECLARED: dict[str, tuple[str, str, str]] = {
    "no slot": (SLOTS, "slots = {}", r"HeavyBall.update asks for 'm', which is not there.*slots = \{'m': 0.0\}"),
    "a slot too many": (SLOTS, 'slots = {"m": 0.0, "v": 0.0}', "slots has 'v', which neither update nor measure"),
    "slots in a list": (SLOTS, 'slots = ["m"]', r"slots must be a mapping.*got \['m'\]"),
    "a first value": (SLOTS, 'slots = {"m": "betta"}', r"m begins with 'betta' \(did you mean beta\?\)"),
    "needs as a text": (SLOTS, f'{SLOTS}\n    needs = "loss"', "needs must be a set of 'loss' and 'evaluate'"),
    "a misspelt space": ('search_space = {"lr"', 'search_space = {"lrr"', r"search_space.*'lrr' \(did you mean lr\?\)"),
    "a method": (f"{STATIC}    {UPDATE}", f"    {UPDATE}", "HeavyBall.update is no static method: write @staticmethod"),
    "a method of numbers": (f"{STATIC}    {SCALARS}", f"    {SCALARS}", "HeavyBall.scalars is no static method"),
    "self": (UPDATE, "def update(self, x, g, m, c):", "HeavyBall.update is a static method and has a `self`"),
    "torch's names": (UPDATE, "def update(p, grad, m, c):", r"asks for 'p'.*did you mean x\?"),
    "no c": (UPDATE, "def update(x, g, m):", r"has to take c.*write def update\(x, g, m, c\)"),
    "everything": (UPDATE, "def update(x, **tensors):", r"takes \*\*tensors: write the names that it wants"),
    "too few arguments": (SCALARS, "def scalars(h, t):", r"called with 3 arguments: write def scalars\(h, t, s\)"),
    "no update": (UPDATE, "def updaet(x, g, m, c):", "HeavyBall has no update"),
    "no super": ("super().__init__(params, locals())", "self.lr = lr", r"hands nothing over: let it call super\(\)"),
    "no locals": ("(params, locals())", "(params)", r"has to hand over its arguments: super\(\).*locals\(\)"),
    "no measure": (f"{STATIC}    {UPDATE}", f"{MEASURES}{STATIC}    {UPDATE}", "there is no `measure` that gives them"),
}
STEPPED: dict[str, tuple[str, str, str]] = {
    "no scalar": ('"w": 1 - h.beta, ', "", r"HeavyBall.update, line \d+ of .*there is no c.w: c holds.*lr, shrink"),
    "a misspelt argument": ("h.beta,", "h.betta,", r"HeavyBall.scalars, line \d+ of .*no h.betta \(did you mean beta"),
    "no return": ('return {"w"', 'd = {"w"', r"HeavyBall.scalars returned nothing \(None\): let it return"),
    "a list of numbers": ('"w": 1', '"ws": [0.1], "w": 1', r"HeavyBall.scalars returned ws = a list: let it return"),
    "a tensor": (
        '"w": 1', '"k": __import__("torch").ones(()), "w": 1', "HeavyBall.scalars returned k = a Tensor: let it return"
    ),
    "a misspelt method": (LERP, "m.lerpp_(g, c.w)", r"HeavyBall.update, line \d+ of .*lerpp_"),
    "a sum behind another word": (
        LERP, "m.lerp_(g / g.square().mean(), c.w)",
        r"HeavyBall.update, line \d+ of .*(calls mean\(\), but .*`measure`|square\(\) is no word)",
    ),
    "a shape": (
        LERP, "m.lerp_(g / g.numel(), c.w)", r"HeavyBall.update, line \d+ of .*asks for numel, .*`count` in `measure`",
    ),
    "a written g": (LERP, "m.lerp_(g.abs_(), c.w)", "HeavyBall.update.* writes its gradient"),
    "a written raw": (LERP, "m.lerp_(raw.abs_(), c.w)", "HeavyBall.update.* writes its gradient"),
    "a written number": (LERP, f"c.lr = 0.5; {LERP}", r"HeavyBall.update.*c.lr is written, but tensors share c"),
    "no sums": (
        f"{STATIC}    {UPDATE}",
        f"{MEASURES}{STATIC}    def measure(g, c):\n        g * g\n\n{STATIC}    {UPDATE}",
        "HeavyBall.measure returned nothing, but `measures` names 1 sum",
    ),
}  # fmt: skip


def written(folder: Path, old: str, new: str) -> str:
    """The import path of CONTRIBUTING's rule with a mistake in it."""
    text = HEAVY_BALL.replace(old, new, 1)
    assert text != HEAVY_BALL
    if "raw" in new:
        text = text.replace(UPDATE, "def update(x, raw, m, c):")
    (folder / "mine.py").write_text(text)
    return f"{folder / 'mine.py'}:HeavyBall"


@pytest.mark.parametrize("mistake", DECLARED)
def test_a_declaration_is_refused_before_anything_is_made(mistake: str, tmp_path: Path) -> None:
    old, new, message = DECLARED[mistake]
    with pytest.raises(UserError, match=message):
        hf_optim.create(written(tmp_path, old, new), torch.nn.Linear(2, 2))


@pytest.mark.parametrize("way", [{}, {"kernels": False}, {"kernels": False, "blocked": frozenset()}])
@pytest.mark.parametrize("mistake", STEPPED)
def test_a_hook_that_fails_is_named_however_the_step_runs(mistake: str, way: dict[str, object], tmp_path: Path) -> None:
    old, new, message = STEPPED[mistake]
    x = torch.nn.Parameter(torch.ones(3))
    opt = hf_optim.create(written(tmp_path, old, new), [x])
    x.grad = torch.ones(3)
    with limits(**way), pytest.raises(UserError, match=message) as error:
        opt.step()
    assert not any(word in str(error.value) for word in ("Lists", "Element", "SimpleNamespace", "Symbol"))


def test_a_number_that_would_be_another_kernel_at_every_step_is_told_of(tmp_path, caplog) -> None:
    """A whole number chooses code; NumPy's are numbers like Python's."""

    def stepped(old: str, new: str) -> torch.optim.Optimizer:
        weight = torch.nn.Parameter(torch.ones(3))
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        optimizer = hf_optim.create(written(folder, old, new), [weight], lr=0.1)
        for _ in range(6):
            weight.grad = torch.ones(3)
            optimizer.step()
        return optimizer

    stepped('"w": 1', '"t": t, "w": 1')
    assert caplog.text.count("HeavyBall.update gets another kernel for each value of c.t (1, 2, 3, 4, 5 so far)") == 1
    caplog.clear()
    stepped('"w": 1', '"t": float(t), "w": 1')
    assert not caplog.text
    plain = hf_optim.create(written(tmp_path, "lr: float", "lr:  float"), [torch.nn.Parameter(torch.ones(3))], lr=0.1)
    numpys = stepped('"w": 1', '"k": __import__("numpy").float32(t), "w": 1')
    assert not caplog.text and numpys.execution.split(":")[0] == plain.execution.split(":")[0]  # type: ignore[attr-defined]


def test_a_class_of_torchs_that_calls_no_super_is_told_so() -> None:
    class Bare(torch.optim.Optimizer):
        def __init__(self, params, lr=0.1):
            self.lr = lr

    class Grouped(torch.optim.Optimizer):
        def __init__(self, params, lr=0.1):
            self.param_groups = [{"params": list(params), "lr": lr}]  # of a model these are groups themselves

    for cls in (Bare, Grouped):
        with pytest.raises(UserError, match=r"its constructor has to call super\(\).__init__\(params, defaults\)"):
            hf_optim.create(cls, torch.nn.Linear(2, 2))


def test_a_constructor_that_raises_anything_is_one_line() -> None:
    """`betas: []` of torch's own was a traceback of an IndexError."""
    with pytest.raises(UserError, match="^AdamW: IndexError: list index out of range$"):
        hf_optim.create(torch.optim.AdamW, torch.nn.Linear(2, 2), betas=[])

    class Greedy(torch.optim.SGD):
        def __init__(self, params):
            raise MemoryError

    with pytest.raises(MemoryError):  # says nothing about the optimizer
        hf_optim.create(Greedy, torch.nn.Linear(2, 2))


class Lost(Transform):
    """Forgets to return."""

    name = "lost"

    @staticmethod
    def apply(g, c):
        g.mul(2.0)


@pytest.mark.parametrize("blockwise", [True, False])
def test_a_transform_that_returns_nothing_is_named(blockwise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lost, "blockwise", blockwise)
    x = torch.nn.Parameter(torch.ones(3))
    opt = hf_optim.create("adamw", [x], grad_transform=Lost())
    x.grad = torch.ones(3)
    with pytest.raises(UserError, match="Lost.apply returned nothing: let it return the transformed gradient"):
        opt.step()


def test_a_number_of_the_step_is_not_written_by_a_method() -> None:
    with pytest.raises(UserError, match=r"mul_\(\) writes a number of c"):
        trace(lambda x, g, c: x.add_(g * c.S.mul_(2.0)), dict.fromkeys("xg", torch.float32), {}, ("S",), torch.float32)


def test_a_name_that_a_hook_may_miss_is_seen_as_missing(tmp_path: Path) -> None:
    path = written(tmp_path, '"lr": h.lr', '"lr": getattr(h, "rate", h.lr) if not hasattr(s, "rate") else 0.0')
    x = torch.nn.Parameter(torch.ones(3))
    opt = hf_optim.create(path, [x], lr=0.5)
    x.grad = torch.ones(3)
    opt.step()
    assert x.tolist() == pytest.approx([0.95] * 3)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (LERP, "m.lerp_(raw.abs_(), c.w)", "writes its gradient"),
        (
            "x.mul_(c.shrink).add_(m, alpha=-c.lr)",
            "x = x - m * c.lr",
            "no parameter ever moves: `update` has to write x",
        ),
        (
            "lr: float = 0.1,\n        beta: float = 0.9,",
            "beta: float, lr: float = 0.1,",
            "beta of its constructor has no default",
        ),
    ],
)
def test_check_says_once_what_is_wrong(old: str, new: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, old, new)
    trouble = Candidate(path).trouble
    assert trouble.count(said) == 1 and "step()" not in trouble


def test_a_check_has_one_number_whatever_is_left_out(tmp_path: Path) -> None:
    known = registered()
    ids = ["convex", "bf16"]
    report = Report(
        ["mine"], ids, {("mine", id): Verdict("mine", id, s, "") for id, s in zip(ids, (PASS, NOT), strict=True)}
    )
    place = list(known).index("bf16") + 1
    assert place > 2 and matrix(report, known).startswith(f"| | 1 | {place} |")
