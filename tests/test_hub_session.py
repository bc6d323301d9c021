"""The same feed in an Accelerate loop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import GradientState
from hub_parts import LINE_SEARCH, Tiny, TinyConfig, data, weights
from torch.nn import functional

import hf_optim


@pytest.fixture(autouse=True)
def _fresh_state():
    """Accelerate's gradient state is one object a process: a window left open by another test must not be ours."""
    GradientState._reset_state()
    yield
    GradientState._reset_state()


def _parts(name="smaran", accumulation=1, n=32, batch=4, dropout=0.0, **hyper):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = Tiny(TinyConfig(dropout=dropout, norm=True))
    optimizer = hf_optim.create(name, model, **hyper)
    loader = torch.utils.data.DataLoader(data(n), batch_size=batch, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    return SimpleNamespace(accelerator=accelerator, model=model.train(), optimizer=optimizer, loader=loader)


def _noisy(model, batch):
    """A loss with noise and timesteps of its own, as in diffusion."""
    x = batch["x"] + torch.rand(len(batch["x"]), 1) * torch.randn_like(batch["x"])
    return functional.cross_entropy(model.logits(x), batch["labels"])


def _spy(optimizer):
    """Losses that reach the optimizer's step."""
    inner, fed = optimizer.optimizer, []
    original = inner.step

    def step(*args, **kwargs):
        if inner._fed is not None:
            fed.append(float(inner._fed[0]))
        return original(*args, **kwargs)

    inner.step = step
    return fed


def test_fed_loss_is_the_mean_of_the_window():
    parts = _parts(accumulation=3, n=32)  # 8 batches: windows of 3, 3 and 2
    fed, values, expected = _spy(parts.optimizer), [], []
    session = hf_optim.Session(parts.accelerator, parts.optimizer)
    moved = []
    for batch in parts.loader:
        with parts.accelerator.accumulate(parts.model):
            values.append(float(session.loss(lambda batch=batch: _noisy(parts.model, batch))))
            if session.step():
                expected.append(sum(values) / 3)  # Accelerate divides a short last window by 3 as well
                values = []
                assert all(p.grad is None for p in parts.model.parameters())
            moved.append(session.figures()["effective_lr"])
    assert fed == pytest.approx(expected, rel=1e-6) and len(fed) == 3
    assert moved[-1] == pytest.approx(0.1 * parts.optimizer.optimizer.param_groups[0]["V"])


def test_two_losses_a_step_add_up_and_a_loss_beside_is_refused():
    parts = _parts()
    fed = _spy(parts.optimizer)
    session = hf_optim.Session(parts.accelerator, parts.optimizer)
    batch = next(iter(parts.loader))
    a = session.loss(_noisy, parts.model, batch)
    b = session.loss(lambda: 3 * _noisy(parts.model, batch))
    session.step()
    assert fed == pytest.approx([float(a + b)])
    with pytest.raises(hf_optim.UserError, match="beside session.loss"):
        parts.accelerator.backward(_noisy(parts.model, batch))
    with pytest.raises(hf_optim.UserError, match="shape"):
        session.loss(lambda: parts.model.logits(batch["x"]))
    session.close()
    parts.accelerator.backward(_noisy(parts.model, batch))


def test_two_sessions_share_an_accelerator():
    accelerator = Accelerator(cpu=True)
    models = [torch.nn.Linear(2, 1) for _ in range(2)]
    optimizers = [accelerator.prepare(hf_optim.create("smaran", m)) for m in models]
    fed = [_spy(o) for o in optimizers]
    sessions = [hf_optim.Session(accelerator, o) for o in optimizers]
    x = torch.ones(2)
    values = [float(s.loss(lambda i=i: (i + 1) * models[i](x).square().sum())) for i, s in enumerate(sessions)]
    assert all(s.step() for s in sessions)
    assert fed == [pytest.approx([v]) for v in values]


def test_line_search_sees_the_same_batches_noise_and_dropout():
    """`batch` is a loop variable: the replay must evaluate each function on the batch it was given with."""
    parts = _parts(LINE_SEARCH, accumulation=2, dropout=0.3)
    session = hf_optim.Session(parts.accelerator, parts.optimizer)
    for batch in parts.loader:
        with parts.accelerator.accumulate(parts.model):
            session.loss(lambda: _noisy(parts.model, batch))  # noqa: B023
            session.step()
    pairs = parts.optimizer.optimizer.pairs
    assert len(pairs) == 4 and all(fed == again for fed, again in pairs)


def test_functions_that_cannot_be_replayed_are_refused():
    parts = _parts(LINE_SEARCH, accumulation=2)
    session = hf_optim.Session(parts.accelerator, parts.optimizer)
    box = {}

    def look():
        return _noisy(parts.model, box["batch"])

    before = weights(parts.model)
    with pytest.raises(hf_optim.UserError, match=r"session.loss\(fn, batch\)"):
        for batch in parts.loader:
            box["batch"] = batch
            with parts.accelerator.accumulate(parts.model):
                session.loss(look)
                session.step()
    assert torch.equal(before[:100], weights(parts.model)[:100])


def test_a_skipped_step_does_not_leak_its_loss():
    """A gradient scaler skips the step after an overflow; the next step sees its own loss only."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    model = torch.nn.Linear(2, 1)
    inner = hf_optim.create("smaran", model)
    optimizer = AcceleratedOptimizer(inner, scaler=accelerator.scaler)
    accelerator._optimizers.append(optimizer)
    session = hf_optim.Session(accelerator, optimizer)
    before = weights(model)
    session.loss(lambda: model(torch.full((2,), float("inf"))).square().sum())
    assert session.step() is False
    assert torch.equal(before, weights(model)) and inner._fed is None
    loss = session.loss(lambda: model(torch.ones(2)).square().sum())
    assert session.step() is True
    assert inner.param_groups[0]["v"] == pytest.approx(float(loss) ** 2)  # unscaled, and only this one
    search = hf_optim.create(LINE_SEARCH, model)
    accelerator._optimizers.append(search)
    with pytest.raises(hf_optim.UserError, match="use bf16"):
        hf_optim.Session(accelerator, search)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [("smaran", {}), ("adamw_agr", {}), ("amvt", {}), ("tlr", {"base": "adamw", "interval": 2}), (LINE_SEARCH, {})],
)
def test_save_and_load_state_are_bit_identical(tmp_path, name, hyper):
    def loop(resume):
        parts = _parts(name, accumulation=2, n=32, dropout=0.3, **hyper)
        session = hf_optim.Session(parts.accelerator, parts.optimizer)
        if resume:
            parts.accelerator.load_state(str(tmp_path / "state"))
        for epoch in range(2):
            if resume and epoch == 0:
                continue
            for batch in parts.loader:
                with parts.accelerator.accumulate(parts.model):
                    session.loss(_noisy, parts.model, batch)
                    session.step()
            if epoch == 0:
                parts.accelerator.save_state(str(tmp_path / "state"))
        return weights(parts.model)

    assert torch.equal(loop(False), loop(True))


def test_load_state_forgets_a_window_that_was_begun(tmp_path):
    parts = _parts(accumulation=2)
    fed = _spy(parts.optimizer)
    session = hf_optim.Session(parts.accelerator, parts.optimizer)
    batch = next(iter(parts.loader))
    parts.accelerator.save_state(str(tmp_path))
    with parts.accelerator.accumulate(parts.model):
        session.loss(lambda: 1000 * _noisy(parts.model, batch))
    parts.accelerator.load_state(str(tmp_path))
    parts.optimizer.zero_grad()
    values = []
    for _ in range(2):
        with parts.accelerator.accumulate(parts.model):
            values.append(float(session.loss(_noisy, parts.model, batch)))
            session.step()
    assert fed == pytest.approx([sum(values) / 2])


def test_steps_per_epoch():
    parts = _parts("tlr", base="sgd", p=0.5)
    hf_optim.Session(parts.accelerator, parts.optimizer, steps_per_epoch=8)
    assert parts.optimizer.param_groups[0]["tlr_interval"] == 4
    with pytest.raises(hf_optim.UserError, match="whole number"):
        hf_optim.Session(parts.accelerator, parts.optimizer, steps_per_epoch=0)


def test_unprepared_optimizer_is_refused():
    with pytest.raises(hf_optim.UserError, match="prepare"):
        hf_optim.Session(Accelerator(cpu=True), hf_optim.create("smaran", torch.nn.Linear(2, 2)))


def test_any_optimizer_will_do():
    parts = _parts("torch.optim:NAdam")
    session = hf_optim.Session(parts.accelerator, parts.optimizer)
    session.loss(_noisy, parts.model, next(iter(parts.loader)))
    assert session.step() and session.figures() == {"effective_lr": 0.002}
