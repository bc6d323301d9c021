"""The pages of docs/trainer: every line of Python in them runs, and does what its page says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from hub_parts import Tiny, TinyConfig, data, make, rows, weights

import hf_optim

OVERVIEW = Path(__file__).parent.parent / "docs" / "trainer.md"
PAGES = sorted((Path(__file__).parent.parent / "docs" / "trainer").glob("*.md"))
BLOCKS = [
    (page.stem, i, code)
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


def _accelerator():
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return Accelerator(cpu=True)


@pytest.mark.parametrize(("page", "i", "code"), BLOCKS, ids=[f"{page}-{i}" for page, i, _ in BLOCKS])
def test_the_line_that_solves_it(tmp_path, page, i, code):
    if "trainer" in re.findall(r"\w+", code):
        trainer = make(tmp_path, n=48)
        before = weights(trainer)
        exec(code, {"hf_optim": hf_optim, "trainer": trainer})  # noqa: S102 - our own page
        trainer.train()
        assert not torch.equal(before, weights(trainer)) and "effective_lr" in rows(trainer)[-1]
        if '"args"' in code:
            assert trainer.optimizer.param_groups[0]["lr"] == trainer.args.learning_rate
        return
    accelerator = _accelerator()
    first, second = Tiny(TinyConfig()), Tiny(TinyConfig())
    before = weights(first), weights(second)
    loader = torch.utils.data.DataLoader(data(16), batch_size=4)
    first, second, a, b = accelerator.prepare(
        first, second, hf_optim.create("smaran", first, lr=0.05), hf_optim.create("adan", second, lr=0.01)
    )
    exec(  # noqa: S102
        code,
        {
            "hf_optim": hf_optim, "accelerator": accelerator, "model": first, "optimizer": a, "d_optimizer": a,
            "g_optimizer": b, "loader": loader, "loss_fn": lambda model, batch: model(**batch)["loss"],
            "d_loss": lambda batch: first(**batch)["loss"], "g_loss": lambda batch: second(**batch)["loss"],
        },
    )  # fmt: skip
    assert not torch.equal(before[0], weights(first))
    assert torch.equal(before[1], weights(second)) == ("g_optimizer" not in code)


def _of_overview(starts):
    blocks = re.findall(r"```python\n(.*?)```", OVERVIEW.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if block.startswith(starts))


@pytest.mark.parametrize(
    "line", re.findall(r"^hf_optim\.attach\(trainer.*$", OVERVIEW.read_text("utf-8"), re.MULTILINE)
)
def test_the_overviews_lines(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).with_name("hub_closures.py"), "my_optimizers.py")
    trainer = make(tmp_path, n=24, max_grad_norm=0)
    before = weights(trainer)
    exec(line, {"hf_optim": hf_optim, "trainer": trainer})  # noqa: S102 - our own page
    exec(_of_overview("trainer.add_callback"), {"hf_optim": hf_optim, "trainer": trainer})  # noqa: S102
    trainer.train()
    assert not torch.equal(before, weights(trainer)) and "gradient_norm" in str(trainer.state.log_history)
    if ":" in line:
        assert rows(trainer)[-1]["closure_calls"] >= 1


def test_the_overviews_loop():
    accelerator = _accelerator()
    model = Tiny(TinyConfig())
    optimizer = hf_optim.create("schedule_free_sgd", model, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0)
    loader = torch.utils.data.DataLoader(data(16), batch_size=4)
    model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
    seen = []
    inside = {
        "hf_optim": hf_optim, "accelerator": accelerator, "model": model, "optimizer": optimizer, "loader": loader,
        "scheduler": scheduler, "loss_fn": lambda m, batch: m(**batch)["loss"],
        "evaluate": lambda m: seen.append(weights(m)),
    }  # fmt: skip
    exec(_of_overview("session ="), inside)  # noqa: S102
    at_y = weights(model)
    exec(_of_overview("with session.evaluation"), inside)  # noqa: S102
    assert torch.equal(at_y, weights(model)) and not torch.equal(at_y, seen[0])
    optimizer.eval()
    assert torch.equal(seen[0], weights(model))


def test_every_page_is_in_the_overview():
    overview = (PAGES[0].parent.parent / "trainer.md").read_text(encoding="utf-8")
    assert len(PAGES) >= 6 and all(f"trainer/{page.name}" in overview for page in PAGES)
