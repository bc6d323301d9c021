"""The trainers of TRL, with and without adapters: the loss that is fed, replays, and what the trainers count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hub_parts import CHECKPOINTING, LINE_SEARCH, rows, spare_imports

import hf_optim

trl = pytest.importorskip("trl")
language = pytest.importorskip("hub_language")

KINDS = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "reward": "Reward", "grpo": "GRPO"}


def _lora() -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.1, fan_in_fan_out=True)


def _make(folder, kind: str, lora: bool = False, **arguments: Any) -> Any:
    spare_imports()
    own: dict[str, Any] = {
        "sft": {"max_length": 16},
        "dpo": {"max_length": 24},
        "kto": {"max_length": 24},
        "reward": {"max_length": 24},
        "grpo": {"num_generations": 2, "max_completion_length": 4, "beta": 0.02 if lora else 0.0},
    }[kind]
    config = getattr(trl, f"{KINDS[kind]}Config")(
        str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=3, logging_steps=1,
        use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, max_grad_norm=0.0, seed=1, bf16=False,
        lr_scheduler_type="constant", **{CHECKPOINTING: False}, **own, **arguments,
    )  # fmt: skip
    given: dict[str, Any] = {"peft_config": _lora()} if lora else {}
    if kind in ("dpo", "kto") and not lora:
        given["ref_model"] = language.model()  # without one, the trainer looks for it on the Hub
    if kind == "grpo":
        given["reward_funcs"] = lambda completions, **_: [float(len(set(c.split()))) for c in completions]
    return getattr(trl, f"{KINDS[kind]}Trainer")(
        language.model("reward" if kind == "reward" else "lm"),
        args=config,
        train_dataset=language.dataset(kind),
        processing_class=language.tokenizer(),
        **given,
    )


def _trained_names(trainer: Any) -> list[str]:
    return [n for n, p in trainer.model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_fed_loss_and_replay(tmp_path, kind, lora):
    """The loss fed is the objective's, the same batch evaluated again gives it bit for bit, under dropout too."""
    trainer = _make(tmp_path, kind, lora)
    attachment = hf_optim.attach(trainer, LINE_SEARCH, lr=0.05)
    returned: list[float] = []
    original = trainer.training_step
    if kind == "grpo":  # its ratio is 1 wherever it is evaluated, and a divergence (with lora) changes nothing in that
        with pytest.raises(hf_optim.UserError, match="no function of them"):
            trainer.train()
        return

    def noting(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        if attachment.feed._again is None:
            returned.append(float(loss))
        return loss

    trainer.training_step = noting
    trainer.train()
    pairs = attachment.optimizer.pairs
    assert len(pairs) == 3 and all(fed == again for fed, again in pairs)
    assert len(returned) == 6
    assert [fed for fed, _ in pairs] == pytest.approx([sum(returned[i : i + 2]) for i in (0, 2, 4)], rel=1e-5, abs=1e-7)
    claimed = {id(p) for g in attachment.optimizer.param_groups for p in g["params"]}
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert claimed == {id(p) for p in trained} and len(claimed) == sum(
        len(g["params"]) for g in attachment.optimizer.param_groups
    )
    kept = ("lora_", "modules_to_save", "score")
    assert all(any(k in name for k in kept) for name in _trained_names(trainer)) is lora


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "grpo"])  # which refuses replays
def test_trainers_count_once_beside_replays(tmp_path, kind):
    """Tokens, samples and metrics of a run with twenty evaluations a step are those of a run with none."""
    logs = []
    for name in ("torch.optim:SGD", LINE_SEARCH):
        trainer = _make(tmp_path, kind)
        hf_optim.attach(trainer, name, lr=0.0)
        trainer.train()
        skipped = ("time", "runtime", "per_second", "flos", "effective_lr", "fps")
        logs.append([{k: v for k, v in row.items() if not any(s in k for s in skipped)} for row in rows(trainer)])
    assert len(logs[0]) == 3 and logs[0] == logs[1]


def test_loss_aware_and_transform_on_adapters(tmp_path):
    trainer = _make(tmp_path, "sft", lora=True)
    hf_optim.attach(trainer, "smaran")
    trainer.train()
    logged = rows(trainer)
    assert [row["hf_optim_loss"] for row in logged] == pytest.approx([row["loss"] for row in logged], rel=1e-3)
    for name, hyper in (("adamw_agr", {"lr": 0.01}), ("tlr", {"base": "adamw", "interval": 1})):
        trainer = _make(tmp_path, "dpo", lora=True)
        before = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
        hf_optim.attach(trainer, name, **hyper)
        trainer.train()
        after = [p for p in trainer.model.parameters() if p.requires_grad]
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_a_default_rate_of_a_millionth_is_said(tmp_path, kind, caplog):
    """TRL's own default of 1e-6 counts as not set; the rule's takes its place, and one warning says so."""
    trainer = _make(tmp_path, kind)
    hf_optim.attach(trainer, "adan")
    trainer.train()
    assert caplog.text.count("lr=0.001, the rule's default, not TrainingArguments.learning_rate=1e-06") == 1


def test_lbfgs_in_a_trl_trainer(tmp_path):
    trainer = _make(tmp_path, "sft")
    hf_optim.attach(trainer, "torch.optim:LBFGS", lr=0.2, max_iter=2)
    trainer.train()
    assert all(row["closure_calls"] >= 2 for row in rows(trainer))


def test_a_loop_of_its_own_is_refused():
    """PPO and self-written loops have no hook at which the optimizer could be watched."""

    class Loop:
        def __init__(self) -> None:
            self.accelerator, self.optimizer = object(), torch.optim.SGD([torch.zeros(1, requires_grad=True)])

        def train(self) -> None: ...

    with pytest.raises(hf_optim.UserError, match="use hf_optim.Session for a loop of your own"):
        hf_optim.attach(Loop(), "smaran")


def test_schedule_free_saves_its_average(tmp_path):
    """What TRL's trainer saves and leaves is x, worked out from the optimizer's file alone."""
    from safetensors.torch import load_file

    trainer = _make(tmp_path, "sft")
    trainer.args.save_strategy, trainer.args.save_steps = "steps", 3
    attachment = hf_optim.attach(trainer, "schedule_free_adamw", lr=0.02)
    trainer.train()
    home = tmp_path / "checkpoint-3"
    states = torch.load(home / "optimizer.pt", weights_only=True)["state"]
    saved, names = load_file(home / "model.safetensors"), {p: n for n, p in trainer.model.named_parameters()}
    params = [p for group in attachment.optimizer.param_groups for p in group["params"]]
    for (_, s), p in zip(sorted(states.items()), params, strict=True):
        average = s["y"] + (1 - 1 / 0.9) * (s["z"] - s["y"])
        torch.testing.assert_close(saved[names[p]], average)
        assert torch.equal(p.detach(), saved[names[p]]) and not torch.equal(s["y"], average)
