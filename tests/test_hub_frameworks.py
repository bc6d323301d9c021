"""Other people's frameworks, with their own packages: each trains as the same loop in plain torch does."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest
import torch
from hub_parts import Tiny, TinyConfig, make, rows, weights
from torch import nn
from torch.nn import functional
from transformers import Trainer, set_seed

import hf_optim

HERE = Path(__file__).parent
DDP = HERE.parent / "configs" / "accelerate" / "ddp.yaml"


def _tiny():
    set_seed(0)
    return Tiny(TinyConfig())


def _smaran_by_hand(batches, lr=0.05, accumulation=1):
    """SMARAN's steps over windows of batches, in plain torch."""
    model = _tiny()
    opt = hf_optim.create("smaran", model, lr=lr)
    for i in range(0, len(batches), accumulation):
        opt.zero_grad()
        total = 0.0
        for x, y in batches[i : i + accumulation]:
            loss = functional.cross_entropy(model.logits(x), y) / accumulation
            loss.backward()
            total += loss.detach()
        opt.step(loss=total)
    return weights(model)


# --- callbacks, scripts -----------------------------------------------------------------------------------------------


def test_a_callback_is_enough(tmp_path):
    trainer = make(tmp_path, n=24, callbacks=[hf_optim.Callback("smaran", lr=0.05)])
    trainer.train()
    torch.testing.assert_close(weights(trainer), _smaran_by_hand(trainer.model.seen), rtol=0, atol=1e-6)
    late = make(tmp_path, n=24)
    late.add_callback(hf_optim.Callback("smaran", lr=0.05))
    late.train()
    assert torch.equal(weights(trainer), weights(late)) and "hf_optim_V" in rows(late)[-1]


def test_a_callback_that_finds_no_trainer_says_so(tmp_path):
    with pytest.raises(hf_optim.UserError, match="smaran"):
        hf_optim.Callback("smarn")

    class Own(Trainer):
        def train(self, *args, **kwargs):
            return self._inner_training_loop(args=self.args, batch_size=4)

    trainer = make(tmp_path, trainer=Own, n=4, callbacks=[hf_optim.Callback("smaran")])
    with pytest.raises(hf_optim.UserError, match="does not begin with"):
        trainer.train()


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
from hub_parts import make, weights
torch.set_num_threads(1)
trainer = make(sys.argv[1], n=24)
trainer.train()
saved = {{"weights": weights(trainer), "seen": trainer.model.seen, "world": trainer.args.world_size}}
if trainer.args.process_index == 0:
    torch.save(saved, sys.argv[2])
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT.format(tests=str(HERE)))
    return file


@pytest.mark.parametrize("how", ["options", "environment"])
def test_a_script_that_cannot_be_edited(tmp_path, script, how, monkeypatch):
    from hf_optim.commands.main import main

    out = tmp_path / "found.pt"
    given = ["--optimizer", "smaran", "--optimizer.lr", "0.05"] if how == "options" else []
    monkeypatch.setenv("HF_OPTIM", "" if given else json.dumps({"name": "smaran", "lr": 0.05}))
    words = ["launch", *given, str(script), str(tmp_path), str(out)]
    if how == "options":
        assert main(words) == 0
    else:  # by an interpreter that has imported nothing
        assert forked.launch("hf_optim", *words, new=True)[0] == 0
    saved = torch.load(out)
    torch.testing.assert_close(saved["weights"], _smaran_by_hand(saved["seen"]), rtol=0, atol=1e-6)


#: the launchers as the page of scripts that cannot be edited writes them, on a CPU
LAUNCHERS = {
    "accelerate": [
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        str(DDP),
        "--main_process_port",
        "0",
    ],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_under_a_launcher_of_two_processes(tmp_path, script, launcher):
    """8 samples a step from two processes: the same weights as from one with batches of 8."""
    out = tmp_path / "found.pt"
    options = ["--optimizer", "smaran", "--optimizer.lr", "0.05"] if launcher == "accelerate" else []
    words = [*LAUNCHERS[launcher], "-m", "hf_optim", "launch", *options, script, tmp_path, out]
    named = {"HF_OPTIM": "" if options else '{"name": "smaran", "lr": 0.05}'}
    code, said = forked.launch(*words, **named)
    assert code == 0, said[-4000:]
    saved = torch.load(out)
    assert saved["world"] == 2
    single = make(tmp_path, n=24, per_device_train_batch_size=8)
    hf_optim.attach(single, "smaran", lr=0.05)
    single.train()
    torch.testing.assert_close(saved["weights"], weights(single), rtol=0, atol=1e-5)


def test_the_help_of_a_launch_shows_where_the_script_goes(capsys):
    from hf_optim.commands.launch import main

    with pytest.raises(SystemExit):
        main(["--help"])
    assert "[-m] SCRIPT [ARG ...]" in " ".join(capsys.readouterr().out.split())


def test_mistakes_of_a_launch_are_one_line(tmp_path, capsys, monkeypatch):
    from hf_optim.commands.main import main

    monkeypatch.delenv("HF_OPTIM", raising=False)
    idle = tmp_path / "idle.py"
    idle.write_text("print('nothing')\n")
    for argv, said in (
        (["launch", str(idle)], "which optimizer?"),
        (["launch", str(idle), "--optimizer", "smaran"], "stands before the script"),
        (["launch", "--optimizer", "smaran"], "which script?"),
        (["launch", "--optimizer", "smarn", str(idle)], "smaran"),
        (["launch", "--optimizer", "smaran", str(tmp_path / "none.py")], "there is no script"),
        (["launch", "--optimizer", "smaran", str(idle)], "attached to nothing"),
        (["launch", "--optimizer", "smaran", "accelerate", "launch", str(idle)], "put it in front"),
        (["launch", "--optimizer", "smaran", "-m", "torch.distributed.run", str(idle)], "put it in front"),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
        monkeypatch.delenv("HF_OPTIM", raising=False)


# --- frameworks -------------------------------------------------------------------------------------------------------


def test_timm(tmp_path):
    """timm's factory, groups, layer decay and scheduler, with our rule and with torch's own in their place."""
    pytest.importorskip("timm")
    import timm
    import timm.optim
    import timm.scheduler

    from hf_optim.hub import timm as door

    names = door.register()
    assert "hf-adan" in names and "hf-adamw-agr" in names and not {"hf-smaran", "hf-tlr"} & set(names)
    assert not [name for name in names if "schedule-free" in name]  # timm's script never calls eval()
    for name in names:
        layer = nn.Linear(2, 2)
        opt = timm.optim.create_optimizer_v2(layer, name, lr=0.1, weight_decay=0.0)
        before = weights(layer)
        for _ in range(2):  # ACProp's first step fills its memory
            layer(torch.ones(1, 2)).sum().backward()
            opt.step()
        assert not torch.equal(before, weights(layer)), name
    ends = []
    for name in ("hf-adamw", "adamw"):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2)
        opt = timm.optim.create_optimizer_v2(model, name, lr=0.01, weight_decay=0.1, layer_decay=0.5)
        scheduler = timm.scheduler.CosineLRScheduler(opt, t_initial=4, warmup_t=1, warmup_lr_init=1e-3)
        for t in range(4):
            scheduler.step(t)
            opt.zero_grad()
            x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(t))
            model(x).square().mean().backward()
            opt.step()
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)
    lacking = [n for n in names if "weight_decay" not in hf_optim.info(n[3:].replace("-", "_")).defaults]
    for name in lacking[:1]:
        with pytest.raises(hf_optim.UserError, match="has no weight_decay"):
            timm.optim.create_optimizer_v2(nn.Linear(2, 2), name, lr=0.1, weight_decay=0.1)


def test_peft_lora_plus(tmp_path):
    """LoRA+ builds groups with rates of their own around any class; the instance is attached."""
    peft = pytest.importorskip("peft")
    from peft.optimizers import create_loraplus_optimizer

    def adapted(model):
        torch.manual_seed(1)
        config = peft.LoraConfig(target_modules=["first", "last"], r=2, init_lora_weights=False)
        return peft.get_peft_model(model, config)

    trainer = make(tmp_path, n=24)
    trainer.model = trainer.model_wrapped = adapted(trainer.model)
    mine = create_loraplus_optimizer(trainer.model, hf_optim.SMARAN, lr=0.05, loraplus_lr_ratio=4.0)
    hf_optim.attach(trainer, mine)
    trainer.train()
    model = adapted(_tiny())
    plain = create_loraplus_optimizer(model, hf_optim.SMARAN, lr=0.05, loraplus_lr_ratio=4.0)
    assert {g["lr"] for g in plain.param_groups if g["params"]} == {0.05, 0.2}
    for x, y in trainer.model.base_model.model.seen:
        plain.zero_grad()
        loss = functional.cross_entropy(model.base_model.model.logits(x), y)
        loss.backward()
        plain.step(loss=loss)
    torch.testing.assert_close(weights(trainer), weights(model), rtol=0, atol=1e-6)


def test_sentence_transformers(tmp_path):
    """A loss with a classifier of its own: it trains, in the trainer's groups, as in plain torch."""
    st = pytest.importorskip("sentence_transformers")
    datasets = pytest.importorskip("datasets")
    from hub_language import sentences, tokenizer
    from sentence_transformers.sentence_transformer import losses
    from transformers import BertConfig, BertModel

    words = tokenizer()
    torch.manual_seed(0)
    folder = tmp_path / "bert"
    BertModel(
        BertConfig(vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ).save_pretrained(folder)  # fmt: skip
    words.save_pretrained(folder)
    text = sentences(16)
    rows_ = datasets.Dataset.from_dict({"first": text[:8], "second": text[8:], "label": [i % 3 for i in range(8)]})

    def built():
        torch.manual_seed(2)
        model = st.SentenceTransformer(str(folder), device="cpu")  # mean pooling
        loss = losses.SoftmaxLoss(model, sentence_embedding_dimension=8, num_labels=3)
        args = st.SentenceTransformerTrainingArguments(
            str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, use_cpu=True, report_to=[],
            save_strategy="no", lr_scheduler_type="constant", max_grad_norm=0.0, disable_tqdm=True,
        )  # fmt: skip
        return st.SentenceTransformerTrainer(model, args, train_dataset=rows_, loss=loss), loss

    trainer, loss = built()
    hf_optim.attach(trainer, "sgd", lr=0.1)
    trainer.train()
    stock, other = built()
    stock.optimizer = torch.optim.SGD([*stock.model.parameters(), *other.classifier.parameters()], lr=0.1)
    stock.optimizer.register_step_post_hook(lambda *_: other.zero_grad())  # older Trainers clear the model's alone
    stock.train()
    assert not torch.equal(built()[1].classifier.weight, loss.classifier.weight)
    torch.testing.assert_close(loss.classifier.weight, other.classifier.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights(trainer), weights(stock), rtol=0, atol=1e-6)


def test_axolotl_calls_the_plugin(tmp_path):
    """Its interface as read: `post_trainer_create(cfg, trainer)` between building and training. Its trainer then calls
    what stands in `optimizer_cls_and_kwargs` bare, and the result with the model and the training arguments."""
    from hf_optim.hub.axolotl import Plugin

    plugin = Plugin()
    assert plugin.get_input_args() == "hf_optim.hub.axolotl.Arguments"

    class Axolotls(Trainer):
        def create_optimizer(self, model=None):
            make_optimizer, hyper = self.optimizer_cls_and_kwargs
            self.optimizer = make_optimizer()(self.model if model is None else model, self.args, **hyper)
            return self.optimizer

    trainer = make(tmp_path, trainer=Axolotls, n=24)
    with pytest.raises(hf_optim.UserError, match="hf_optim: {name"):
        plugin.post_trainer_create({}, trainer)
    trainer.args.embedding_lr = 1e-5
    with pytest.raises(hf_optim.UserError, match="embedding_lr of axolotl would have no effect"):
        plugin.post_trainer_create({"hf_optim": "smaran"}, trainer)
    trainer.args.embedding_lr = None
    plugin.post_trainer_create({"hf_optim": {"name": "smaran", "lr": 0.05}}, trainer)
    trainer.train()
    torch.testing.assert_close(weights(trainer), _smaran_by_hand(trainer.model.seen), rtol=0, atol=1e-6)
