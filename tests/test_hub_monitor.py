"""What the monitor logs is what happened, computed here a second time."""

from __future__ import annotations

import pytest
import torch
from hub_parts import Honest, make, rows
from transformers import TrainerCallback

import hf_optim
from hf_optim.hub import Monitor


class Watch(TrainerCallback):
    """Weights and gradients at each step, by name."""

    def __init__(self) -> None:
        self.steps: list[dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.before = {n: (p.detach().clone(), p.grad.clone()) for n, p in model.named_parameters()}

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: (*self.before[n], p.detach().clone()) for n, p in model.named_parameters()})


def _run(folder, monitor, name="smaran", **arguments):
    watch = Watch()
    trainer = make(folder, Honest, callbacks=[monitor, watch], **arguments)
    hf_optim.attach(trainer, name)
    trainer.train()
    return trainer, watch.steps


@pytest.mark.parametrize("every", [1, 3])
def test_figures_are_those_of_the_last_step_looked_at(tmp_path, every):
    trainer, steps = _run(tmp_path, Monitor(per_layer=True, every=every), n=28, max_grad_norm=0.5)
    logged = rows(trainer)
    assert len(logged) == len(steps) == 7
    for i, row in enumerate(logged):
        seen = steps[i - i % every]
        w, g, new = (torch.cat([step[k].flatten() for step in seen.values()]) for k in range(3))
        assert row["gradient_norm"] == pytest.approx(float(g.norm()), rel=1e-5) and row["gradient_norm"] < 0.5 + 1e-4
        assert row["update_norm"] == pytest.approx(float((new - w).norm()), rel=1e-4)
        assert row["weight_norm"] == pytest.approx(float(w.norm()), rel=1e-5)
        assert row["update_ratio"] == pytest.approx(float((new - w).norm() / w.norm()), rel=1e-4)
        if i % every == 0:
            assert row["loss_fed"] == pytest.approx(row["hf_optim_loss"], rel=1e-6)
        for name, (old, gradient, moved) in seen.items():
            assert row[f"gradient_norm/{name}"] == pytest.approx(float(gradient.norm()), rel=1e-4, abs=1e-7)
            size = float(old.norm())
            ratio = float((moved - old).norm()) / size if size else 0.0
            assert row[f"update_ratio/{name}"] == pytest.approx(ratio, rel=1e-4, abs=1e-7)


def test_layers_only_on_request_and_evaluations_unchanged(tmp_path):
    trainer, _ = _run(tmp_path, Monitor(), n=8, eval_strategy="epoch")
    assert not any("/" in key for row in rows(trainer) for key in row)
    assert all("update_norm" not in row for row in rows(trainer, "eval_loss"))


def test_a_line_search_logs_its_trials(tmp_path):
    trainer, _ = _run(tmp_path, Monitor(every=1), "sls", n=12)
    assert all({"update_norm", "loss_fed"} <= set(row) for row in rows(trainer))
    assert any("backtracks" in key or "trial" in key for key in rows(trainer)[0]), sorted(rows(trainer)[0])


def test_it_does_not_change_the_run(tmp_path):
    ends = []
    for callbacks in ([Monitor(per_layer=True, every=1)], []):
        trainer = make(tmp_path, dropout=0.3, norm=True, callbacks=callbacks)
        hf_optim.attach(trainer, "smaran")
        trainer.train()
        ends.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.equal(*ends)


def test_it_reaches_tensorboard_and_every_reporter(tmp_path):
    """Every reporter gets the row that the monitor has added to."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers.integrations import TensorBoardCallback

    seen: list[dict] = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    trainer = make(tmp_path, Honest, n=8, callbacks=[TensorBoardCallback, Reporter()])
    trainer.add_callback(Monitor(every=1))
    hf_optim.attach(trainer, "smaran")
    trainer.train()
    assert all({"update_ratio", "effective_lr", "hf_optim_V"} <= set(row) for row in seen if "loss" in row)
    files = [f.parent for f in tmp_path.rglob("events.out.tfevents*")]
    tags = EventAccumulator(str(files[0])).Reload().Tags()["scalars"]
    assert {"train/update_ratio", "train/effective_lr", "train/gradient_norm"} <= set(tags)


def test_it_reaches_trackio(tmp_path, monkeypatch):
    """A local project: trackio keeps it in a database, without a network or an account."""
    import json
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trackio")
    from transformers.integrations import TrackioCallback

    trainer = make(tmp_path, Honest, n=8, project="monitor", callbacks=[TrackioCallback])
    trainer.add_callback(Monitor(every=1))
    hf_optim.attach(trainer, "smaran")
    trainer.train()
    with sqlite3.connect(tmp_path / "trackio" / "monitor.db") as database:
        logged = [json.loads(row[0]) for row in database.execute("select metrics from metrics")]
    assert any(
        {"train/update_ratio", "train/effective_lr", "train/hf_optim_V", "train/loss_fed"} <= set(row) for row in logged
    )


def test_it_needs_attach(tmp_path):
    trainer = make(tmp_path, n=4, callbacks=[Monitor()])
    with pytest.raises(hf_optim.UserError, match="attach an optimizer"):
        trainer.train()
