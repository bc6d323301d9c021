"""Groups and arguments in a trainer: its own, in its order, as stock Trainer has them."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from hub_parts import Tiny, TinyConfig, data, make, weights
from torch import nn
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

import hf_optim
from hf_optim.core.groups import Parameters, describe
from hf_optim.hub.feed import unwrapped


def _names(trainer, model=None):
    of = {p: n for n, p in (model or trainer.model).named_parameters()}
    return [[of[p] for p in group["params"]] for group in unwrapped(trainer.optimizer).param_groups]


class Plain(Tiny):
    """The first parameter is one that does not decay, and the two groups have equal counts."""

    def __init__(self, config):
        super().__init__(config)
        self.shift = nn.Parameter(torch.zeros(16, 16))
        self._modules = {"norm": self.norm, "first": self.first, "last": self.last, "dropout": self.dropout}

    def logits(self, x):
        return self.last(self.dropout(torch.tanh(self.norm(self.first(x)) @ (1 + self.shift))))


# --- equal to stock ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True])
def test_attached_adamw_equals_stock(tmp_path, norm):
    """Rate, decay, betas, eps, groups and their order are the arguments' and the trainer's own."""
    given = {"learning_rate": 5e-3, "weight_decay": 0.3, "adam_beta2": 0.9, "adam_epsilon": 1e-3, "norm": norm}
    stock = make(tmp_path, Plain, optim="adamw_torch", **given)
    stock.train()
    attached = make(tmp_path, Plain, **given)
    hf_optim.attach(attached, "adamw")
    attached.train()
    assert _names(stock) == _names(attached)
    torch.testing.assert_close(weights(stock), weights(attached), rtol=0, atol=1e-5)


def test_attached_adamw_takes_the_arguments_defaults(tmp_path):
    """5e-5 and no decay, as stock, although the rule's own rate is 1e-3."""
    trainer = make(tmp_path, n=4)
    hf_optim.attach(trainer, "adamw")
    trainer.train()
    assert [(g["lr"], g["weight_decay"]) for g in unwrapped(trainer.optimizer).param_groups] == [(5e-5, 0.0)] * 2


def _t5():
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def _swin():
    config = SwinConfig(image_size=8, patch_size=2, embed_dim=8, depths=[1], num_heads=[2], window_size=2)
    return SwinForImageClassification(config)


@pytest.mark.parametrize(
    ("build", "table"), [(_t5, "relative_attention_bias"), (_swin, "relative_position_bias_table")]
)
def test_tables_of_biases_divide_as_stock(tmp_path, build, table):
    names = []
    for attached in (False, True):
        args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], weight_decay=0.1)
        trainer = Trainer(build(), args, train_dataset=data(4))
        if attached:
            hf_optim.attach(trainer, "adan")
        trainer.create_optimizer()
        names.append(_names(trainer))
    assert names[0] == names[1] and any(table in n for n in names[0][1])
    own = hf_optim.create("adan", build(), weight_decay=0.1)
    assert [[n for n in g["hf_optim_names"]] for g in own.param_groups] == names[0]


def test_a_stock_checkpoint_goes_on_under_attach(tmp_path):
    """Resumed under attach, a stock run ends where it would have ended."""

    def run(attached, resume=None):
        trainer = make(
            tmp_path, Plain, n=32, weight_decay=0.3, learning_rate=5e-3, optim="adamw_torch", save_strategy="steps",
            save_steps=4,
        )  # fmt: skip
        if attached:
            hf_optim.attach(trainer, "adamw")
        trainer.train(resume_from_checkpoint=resume)
        return weights(trainer)

    whole = run(False)
    torch.testing.assert_close(whole, run(True, str(tmp_path / "checkpoint-4")), rtol=0, atol=1e-6)


# --- a trainer's own groups -------------------------------------------------------------------------------------------


class OwnNames(Trainer):
    def get_decay_parameter_names(self, model):
        return ["last.weight"]


class OwnGroups(Trainer):
    """A loss with weights, as sentence-transformers' SoftmaxLoss, and a rate of its own for them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss = nn.Linear(3, 3)

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        kwargs["optimizer_dict"] = [
            {"params": [*self.model.parameters(), self.loss.weight], "weight_decay": args.weight_decay},
            {"params": [self.loss.bias], "weight_decay": 0.0, "lr": 0.5},
        ]
        return cls, kwargs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return nn.functional.cross_entropy(self.loss(model(inputs["x"])["logits"]), inputs["labels"])


@pytest.mark.parametrize("door", ["adan", "torch.optim:SGD"])
def test_overridden_names_and_foreign_classes(tmp_path, door):
    trainer = make(tmp_path, trainer=OwnNames, n=4)
    hf_optim.attach(trainer, door, lr=0.01, weight_decay=0.5)
    trainer.train()
    groups = unwrapped(trainer.optimizer).param_groups
    assert [g["weight_decay"] for g in groups] == [0.5, 0.0]
    assert _names(trainer)[0] == ["last.weight"] and len(_names(trainer)[1]) == 5


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_loss_with_weights_is_trained(tmp_path, decay):
    """SGD in the trainer's own groups against the same loop in plain torch."""
    trainer = make(tmp_path, trainer=OwnGroups, n=8, weight_decay=decay)
    torch.manual_seed(5)
    trainer.loss.reset_parameters()
    model, loss = Tiny(TinyConfig()), nn.Linear(3, 3)
    model.load_state_dict(trainer.model.state_dict())
    loss.load_state_dict(trainer.loss.state_dict())
    hf_optim.attach(trainer, "sgd", lr=0.1, weight_decay="args")
    trainer.train()
    seen = trainer.model.seen
    plain = torch.optim.SGD(
        [
            {"params": [*model.parameters(), loss.weight], "weight_decay": decay},
            {"params": [loss.bias], "weight_decay": 0.0, "lr": 0.5},
        ],
        lr=0.1,
    )
    lookup = {tuple(row["x"].tolist()): row["labels"] for row in trainer.train_dataset}  # the model sees no labels
    for x, _ in seen:
        plain.zero_grad()
        y = torch.stack([lookup[tuple(row.tolist())] for row in x])
        nn.functional.cross_entropy(loss(model(x)["logits"]), y).backward()
        plain.step()
    torch.testing.assert_close(trainer.loss.weight, loss.weight)
    torch.testing.assert_close(trainer.loss.bias, loss.bias)
    torch.testing.assert_close(weights(trainer), weights(model))


def test_a_loss_with_weights_is_resumed_with_them(tmp_path, caplog):
    """Trainer's checkpoints hold the model alone; one that stock has written is said to lack the rest."""

    def run(folder, resume=None, attached=True):
        torch.manual_seed(5)
        trainer = make(folder, trainer=OwnGroups, n=24, save_strategy="steps", save_steps=3, learning_rate=1e-2)
        if attached:
            hf_optim.attach(trainer, "adamw")
        trainer.train(resume_from_checkpoint=resume and str(folder / "checkpoint-3"))
        return torch.cat([weights(trainer), weights(trainer.loss)])

    whole = run(tmp_path)
    assert torch.equal(whole, run(tmp_path, resume=True)) and "begin anew" not in caplog.text
    run(tmp_path / "stock", attached=False)
    assert not torch.equal(whole, run(tmp_path / "stock", resume=True))
    assert "not what they held: they lie outside" in caplog.text and "loss.weight, loss.bias" in caplog.text


class Named(Tiny):
    def no_weight_decay(self):
        return {"first.weight"}


def test_a_models_own_exemptions_count(tmp_path):
    for groups in (
        hf_optim.create("adan", Named(TinyConfig()), weight_decay=0.2).param_groups,
        hf_optim.create("torch.optim:SGD", Named(TinyConfig()), weight_decay=0.2).param_groups,
    ):
        assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.2, 1), (0.0, 5)]
    trainer = make(tmp_path, Named, n=4)
    hf_optim.attach(trainer, "adan", weight_decay=0.2)
    trainer.train()
    assert _names(trainer)[0] == ["last.weight"]
    assert describe(unwrapped(trainer.optimizer).param_groups) == "weight decay 0.2 on 1 tensor, 0 on 5"


# --- said, not silent -------------------------------------------------------------------------------------------------


def test_a_gradient_that_nobody_uses_is_said_once(tmp_path, caplog):
    trainer = make(tmp_path, n=16)
    trainer.model.first.requires_grad_(False)
    hf_optim.attach(trainer, "adan", lr=0.01)

    def thaw(args, state, control, **kwargs):
        if state.global_step == 2:
            trainer.model.first.requires_grad_(True)

    from transformers import TrainerCallback

    trainer.add_callback(type("Thaw", (TrainerCallback,), {"on_step_begin": lambda self, *a, **k: thaw(*a, **k)})())
    before = trainer.model.first.weight.clone()
    trainer.train()
    assert torch.equal(before, trainer.model.first.weight)
    assert caplog.text.count("got a gradient and no optimizer has them") == 1
    assert "first.weight, first.bias" in caplog.text


@pytest.mark.parametrize(
    ("name", "arguments", "hyper", "said"),
    [
        ("smaran", {}, {}, ["trains with lr=0.1, the rule's default, not TrainingArguments.learning_rate=5e-05"]),
        ("adan", {"learning_rate": 0.02, "weight_decay": 0.0}, {"lr": 0.01}, ["lr=0.01, as given", 'lr="args"']),
        ("smaran", {"weight_decay": 0.01}, {"lr": "args"}, []),
        ("adamw", {}, {}, []),
    ],
)  # fmt: skip
def test_one_warning_where_the_argument_is_not_in_force(tmp_path, caplog, name, arguments, hyper, said):
    trainer = make(tmp_path, n=8, **arguments)
    hf_optim.attach(trainer, name, **hyper)
    with caplog.at_level(logging.WARNING, logger="hf_optim"):
        trainer.train()
        trainer.train()
    assert caplog.text.count("trains with") == bool(said)
    for words in said:
        assert words in caplog.text
    if hyper.get("lr") == "args":
        assert unwrapped(trainer.optimizer).param_groups[0]["lr"] == trainer.args.learning_rate


def test_args_stands_for_nothing_else(tmp_path):
    trainer = make(tmp_path, n=4)
    hf_optim.attach(trainer, "adan", eps="args")
    with pytest.raises(hf_optim.UserError, match="only lr and weight_decay"):
        trainer.train()


# --- checkpoints by names ---------------------------------------------------------------------------------------------


def _steps(model, opt, n, start=0):
    for t in range(start, start + n):
        opt.zero_grad()
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(t))
        loss = (model.logits(x) ** 2).mean() + 1
        loss.backward()
        opt.step(loss=loss) if hasattr(opt, "feed") else opt.step()


def _fresh(kind=Plain):
    torch.manual_seed(0)
    return kind(TinyConfig())


@pytest.mark.parametrize("name", ["smaran", "adan", "adamw", "torch.optim:Adam", "tlr_adamw", "lookahead_adam"])
def test_groups_in_another_order_are_matched_by_name(name):
    """A checkpoint of release 0.1.0 (no names, groups by first occurrence), and one with names, turned round."""
    hyper = {"interval": 2} if name == "tlr_adamw" else {}
    decayed = {"base": {"weight_decay": 0.1}} if "_" in name else {"weight_decay": 0.1}
    model = _fresh()
    source = Parameters(model)
    old = source.earlier(0.1)
    assert len(old) == 2 and old[0][0] == "shift"
    of = {n: p for p, n in source.names.items()}
    turned = [
        {"params": [of[n] for n in names], "weight_decay": d} for names, d in zip(old[::-1], (0.0, 0.1), strict=True)
    ]
    first = hf_optim.create(name, turned, **hyper)
    _steps(model, first, 3)
    saved = copy.deepcopy(first.state_dict())  # torch's own classes would share the tensors
    names = [
        {**g, "hf_optim_names": n} for g, n in zip(saved["param_groups"], old[::-1], strict=True)
    ]  # with names: any order
    twin = _fresh()
    second = hf_optim.create(name, twin, **hyper, **decayed)
    twin.load_state_dict(model.state_dict())
    second.load_state_dict({**saved, "param_groups": names})
    _steps(model, first, 3, 3)
    _steps(twin, second, 3, 3)
    assert torch.equal(weights(model), weights(twin))


def test_a_checkpoint_of_the_earlier_release_is_matched(tmp_path):
    """Its groups came in the order of the first parameter; state and decay must not change places."""

    model = _fresh(Tiny)
    model._modules = {"norm": model.norm, "first": model.first, "last": model.last, "dropout": model.dropout}
    source = Parameters(model)
    old = source.earlier(0.1)
    assert old[0][0] == "norm.weight"  # without decay, first
    of = {n: p for p, n in source.names.items()}
    first = hf_optim.create(
        "adan", [{"params": [of[n] for n in ns], "weight_decay": d} for ns, d in zip(old, (0.0, 0.1), strict=True)]
    )
    _steps(model, first, 3)
    twin = copy.deepcopy(model)
    second = hf_optim.create("adan", twin, weight_decay=0.1)
    second.load_state_dict(first.state_dict())
    assert [g["weight_decay"] for g in second.param_groups] == [0.1, 0.0]
    _steps(model, first, 3, 3)
    _steps(twin, second, 3, 3)
    assert torch.equal(weights(model), weights(twin))


@pytest.mark.parametrize("name", ["smaran", "adamw", "lookahead_adam"])
def test_a_model_with_other_parameters_is_refused(name):
    small, large = _fresh(Tiny), _fresh(Plain)
    first, second = hf_optim.create(name, small), hf_optim.create(name, large)
    _steps(small, first, 2)
    _steps(large, second, 2)
    before = {k: v.clone() for k, v in second.state[large.first.weight].items() if isinstance(v, torch.Tensor)}
    with pytest.raises(hf_optim.BadCheckpoint, match="checkpoint lacks the optimizer's state of shift"):
        second.load_state_dict(first.state_dict())
    with pytest.raises(hf_optim.BadCheckpoint, match="this model lacks the optimizer's state of shift"):
        first.load_state_dict(second.state_dict())
    assert all(torch.equal(v, second.state[large.first.weight][k]) for k, v in before.items())


@pytest.mark.parametrize("kind", [OwnNames, OwnGroups])
def test_a_factory_divides_as_its_trainer_does(tmp_path, kind):
    """Trainer hands the factory the model alone; what the trainer has overridden counts all the same."""
    trained = []
    for door in ("factory", "attach"):
        given = hf_optim.factory("sgd", lr=0.1, weight_decay=0.5) if door == "factory" else None
        torch.manual_seed(5)
        trainer = make(tmp_path, trainer=kind, n=12, optimizer_cls_and_kwargs=given)
        if given is None:
            hf_optim.attach(trainer, "sgd", lr=0.1, weight_decay=0.5)
        trainer.train()
        groups = unwrapped(trainer.optimizer).param_groups
        division = [(g["lr"], g["weight_decay"], [p.shape for p in g["params"]]) for g in groups]
        trained.append((weights(trainer), division))
    assert trained[0][1] == trained[1][1]
    if kind is OwnNames:  # the gradients of a loss with weights are cleared by its trainer, or by attach
        assert torch.equal(trained[0][0], trained[1][0])


@pytest.mark.parametrize("door", ["attach", "factory", "Session"])
def test_the_log_names_the_split(tmp_path, caplog, door):
    caplog.set_level(logging.INFO, logger="hf_optim")
    given = hf_optim.factory("sgd", weight_decay=0.25) if door == "factory" else None
    trainer = make(tmp_path, n=4, optimizer_cls_and_kwargs=given)
    if door == "Session":
        opt = trainer.accelerator.prepare(hf_optim.create("sgd", trainer.model, weight_decay=0.25))
        hf_optim.Session(trainer.accelerator, opt)
    else:
        if door == "attach":
            hf_optim.attach(trainer, "sgd", weight_decay=0.25)
        trainer.train()
    assert caplog.text.count("weight decay 0.25 on 2 tensors, 0 on 4") == 1
