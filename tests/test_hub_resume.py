"""A run that is interrupted and resumed is bit for bit the run that was not."""

from __future__ import annotations

import pytest
import torch
from hub_parts import LINE_SEARCH, Honest, make, rows, weights

import hf_optim

_CASES = {
    "smaran": ("smaran", {}),
    "adamw_agr": ("adamw_agr", {}),
    "adan": ("adan", {}),
    "amvt": ("amvt", {}),
    "tlr(adamw)": ("tlr", {"base": "adamw", "interval": 2}),
    "tlr(sgd)": ("tlr", {"base": {"name": "sgd", "lr": 0.05}, "p": 0.4}),
    "tlr(smaran)": ("tlr", {"base": "smaran", "interval": 2}),
    "line search": (LINE_SEARCH, {}),
}


def _run(folder, case, resume=None):
    name, hyper = _CASES[case]
    trainer = make(
        folder,
        Honest,
        n=56,  # 14 batches: 5 steps an epoch with accumulation 3, the last window of 2; saved in mid-epoch
        dropout=0.3,
        norm=True,
        num_train_epochs=2,
        gradient_accumulation_steps=3,
        lr_scheduler_type="cosine",
        save_strategy="steps",
        save_steps=7,
    )
    attachment = hf_optim.attach(trainer, name, **hyper)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, attachment


def _flat(state):
    return [(i, k, v) for i, s in state["state"].items() for k, v in s.items()]


@pytest.mark.parametrize("case", list(_CASES))
def test_resume_is_bit_identical(tmp_path, case):
    whole, one = _run(tmp_path, case)
    resumed, two = _run(tmp_path, case, resume=str(tmp_path / "checkpoint-7"))
    assert whole.state.global_step == resumed.state.global_step == 10
    assert torch.equal(weights(whole), weights(resumed))
    a, b = one.optimizer.state_dict(), two.optimizer.state_dict()
    assert a["param_groups"] == b["param_groups"]
    for (i, k, x), (j, m, y) in zip(_flat(a), _flat(b), strict=True):
        assert (i, k) == (j, m) and (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y)
    keys = [k for k in rows(whole)[-1] if "runtime" not in k]
    assert [[r[k] for k in keys] for r in rows(whole)] == [[r[k] for k in keys] for r in rows(resumed)]


def test_resuming_with_another_rule_is_refused(tmp_path):
    _run(tmp_path, "smaran")
    with pytest.raises(hf_optim.BadCheckpoint, match="smaran"):
        _CASES["other"] = ("amvt", {})
        _run(tmp_path, "other", resume=str(tmp_path / "checkpoint-7"))
