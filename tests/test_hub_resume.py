"""A run that is interrupted and resumed is bit for bit the run that was not."""

from __future__ import annotations

import pytest
import torch
from hub_parts import LINE_SEARCH, Honest, make, rows, weights
from safetensors import safe_open
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

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
    whole, first = _run(tmp_path, case)
    resumed, second = _run(tmp_path, case, resume=str(tmp_path / "checkpoint-7"))
    assert whole.state.global_step == resumed.state.global_step == 10
    assert torch.equal(weights(whole), weights(resumed))
    a, b = first.optimizer.state_dict(), second.optimizer.state_dict()
    assert a["param_groups"] == b["param_groups"]
    for (i, k, x), (j, m, y) in zip(_flat(a), _flat(b), strict=True):
        assert (i, k) == (j, m) and (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y)
    keys = [k for k in rows(whole)[-1] if "runtime" not in k]
    assert [[r[k] for k in keys] for r in rows(whole)] == [[r[k] for k in keys] for r in rows(resumed)]


def test_a_checkpoint_without_the_optimizers_state_is_said(tmp_path, caplog):
    """Trainer goes on with the weights alone, and says nothing."""
    _run(tmp_path, "smaran")
    checkpoint = tmp_path / "checkpoint-7"
    _run(tmp_path, "smaran", resume=str(checkpoint))
    assert "begin anew" not in caplog.text
    (checkpoint / "optimizer.pt").unlink()
    _run(tmp_path, "smaran", resume=str(checkpoint))
    assert "checkpoint-7 has no optimizer state: the weights go on" in caplog.text
    (checkpoint / "scheduler.pt").unlink()
    _run(tmp_path, "smaran", resume=str(checkpoint))
    assert "checkpoint-7 has no optimizer and no scheduler state" in caplog.text


def test_resuming_with_another_rule_is_refused(tmp_path):
    _run(tmp_path, "smaran")
    with pytest.raises(hf_optim.BadCheckpoint, match="smaran"):
        _CASES["other"] = ("amvt", {})
        _run(tmp_path, "other", resume=str(tmp_path / "checkpoint-7"))


def test_a_run_of_another_shape_is_told_in_words(tmp_path, caplog):
    """Another world size, batch or hyper-parameter goes on, and the log says what became of it."""
    import json

    _run(tmp_path, "smaran")
    file = tmp_path / "checkpoint-7" / "hf_optim.json"
    written = json.loads(file.read_text())
    assert written["processes"] == 1 and written["step_samples"] == 12
    assert written["optimizer"] == {"name": "smaran"}
    caplog.clear()
    _run(tmp_path, "smaran", resume=str(tmp_path / "checkpoint-7"))
    assert "checkpoint" not in caplog.text
    file.write_text(json.dumps({**written, "processes": 2, "step_samples": 24}))
    _run(tmp_path, "smaran", resume=str(tmp_path / "checkpoint-7"))
    assert "written by another number of processes, 2, and goes on with 1" in caplog.text
    assert "a step took 24 samples and takes 12 now" in caplog.text
    _CASES["changed"] = ("smaran", {"gamma": 0.5})
    file.write_text(json.dumps(written))
    trainer, attachment = _run(tmp_path, "changed", resume=str(tmp_path / "checkpoint-7"))
    assert "the hyper-parameters of the checkpoint are in force" in caplog.text
    assert attachment.optimizer.param_groups[0]["gamma"] == 0.9


def test_weights_under_an_older_releases_names_are_resumed_with(tmp_path, caplog):
    """transformers may write ViT's layers as `encoder.layer.N`, and Trainer resumes by today's names."""
    rng = torch.Generator().manual_seed(0)
    images = [{"pixel_values": torch.randn(3, 4, 4, generator=rng), "labels": i % 2} for i in range(24)]

    def run(resume=None, **arguments):
        set_seed(0)
        config = ViTConfig(
            image_size=4, patch_size=2, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2,
        )  # fmt: skip
        args = TrainingArguments(
            str(tmp_path), use_cpu=True, report_to=[], per_device_train_batch_size=4, max_steps=6, disable_tqdm=True,
            save_strategy="steps", save_steps=3, **arguments,
        )  # fmt: skip
        trainer = Trainer(ViTForImageClassification(config), args, train_dataset=images, eval_dataset=images)
        hf_optim.attach(trainer, "adan", lr=0.05)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole_trainer = run()
    whole = weights(whole_trainer)
    before = weights(ViTForImageClassification.from_pretrained(tmp_path / "checkpoint-3"))
    assert torch.equal(whole, weights(run(str(tmp_path / "checkpoint-3"))))
    with safe_open(tmp_path / "checkpoint-3" / "model.safetensors", "pt") as file:
        renamed = set(file.keys()) != set(whole_trainer.model.state_dict())
    assert ("under the names of another release" in caplog.text) == renamed
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss"}
    trainer = run(**best, greater_is_better=False)  # the labels are noise: the loss rises
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")
    assert torch.equal(weights(trainer), before) and not torch.equal(before, whole)
