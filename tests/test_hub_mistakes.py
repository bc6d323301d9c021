"""Forty misspelt, mistyped or ignored arguments: forty errors, in words, before a weight has moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hub_parts import make, weights

import hf_optim
from hf_optim.hub import Monitor


def attach(*args: Any, **hyper: Any) -> Callable[[Any], Any]:
    return lambda trainer: hf_optim.attach(trainer, *args, **hyper)


def factory(*args: Any, **hyper: Any) -> Callable[[Any], Any]:
    return lambda trainer: hf_optim.factory(*args, **hyper)


def session(name: str = "sgd", **arguments: Any) -> Callable[[Any], Any]:
    def call(trainer: Any) -> Any:
        accelerator = Accelerator(cpu=True)
        optimizer = accelerator.prepare(hf_optim.create(name, trainer.model, **{"lr": 0.1} if name == "sgd" else {}))
        return hf_optim.Session(accelerator, optimizer, **arguments)

    return call


def monitor(**arguments: Any) -> Callable[[Any], Any]:
    return lambda trainer: Monitor(**arguments)


#: what is done with a fresh trainer, and a word that the error must have; training follows where nothing was raised
MISTAKES: dict[str, tuple[Callable[[Any], Any], str]] = {
    # misspelt
    "name": (attach("smarann"), "smaran"),
    "case of a name": (attach("SMARAN"), "list_optimizers"),
    "hyper-parameter": (attach("smaran", gama=0.9), "gamma"),
    "learning rate": (attach("adamw", learning_rate=0.1), "lr"),
    "decay": (attach("adamw", weight_decy=0.1), "weight_decay"),
    "betas": (attach("adamw", beta=(0.9, 0.99)), "betas"),
    "key of a specification": (attach({"nmae": "smaran"}), "name"),
    "hyper-parameter in a specification": (attach({"name": "smaran", "gama": 0.9}), "gamma"),
    "base": (attach("tlr", base="adamww"), "adamw"),
    "hyper-parameter of a base": (attach("tlr", base={"name": "sgd", "momentun": 0.9}), "momentum"),
    "hyper-parameter of a wrapper": (attach("tlr", base="sgd", gama=0.3), "gamma"),
    "transform": (attach("adan", grad_transform="agrr"), "agr"),
    "module": (attach("torch.optimm:LBFGS"), "torch.optimm"),
    "class": (attach("torch.optim:LBFGSS"), "LBFGS"),
    "argument of a class": (attach("torch.optim:LBFGS", max_iters=3), "max_iters"),
    "file": (attach("nowhere.py:Mine"), "nowhere.py"),
    "schedule": (attach("smaran", schedule="multi_step"), "multistep"),
    "parameter of a schedule": (attach("smaran", schedule={"name": "multistep", "gama": 0.1}), "gamma"),
    "closure": (attach("torch.optim:LBFGS", closur=True), "closur"),
    "factory name": (factory("adamw_arg"), "adamw_agr"),
    "factory argument": (factory("adamw", momentum=0.9), "momentum"),
    "module of a base": (attach("tlr", base="torch.optimm:Adam"), "torch.optimm"),
    "argument of a base's class": (attach("tlr", base={"name": "torch.optim:Adam", "lrr": 1}), "lr"),
    "argument of a transform": (attach("adamw", grad_transform={"name": "agr", "foo": 1}), "foo"),
    "a dot for the colon": (attach("torch.optim.Adam"), "did you mean torch.optim:Adam?"),
    "a dot for a base's colon": (attach("tlr", base="torch.optim.SGD"), "did you mean torch.optim:SGD?"),
    "Trainer's own name": (attach("adamw_torch_fused"), "did you mean adamw?"),
    "a file without a class": (attach("mine.py"), "mine.py:ITS_CLASS"),
    "a colon without a class": (attach("mine.py:"), "names nothing"),
    "closure of a factory": (factory("torch.optim:LBFGS"), "hf_optim.attach gives it one"),
    # mistyped
    "text of a specification": (attach('{"name": "tlr", "base": "sgd"}'), "is the text of a specification"),
    "text of a base": (attach("tlr", base='{"name": "sgd"}'), "is the text of a specification"),
    "a function of C": (attach("torch:sum"), "nor a function that makes one"),
    "a function of C itself": (attach(torch.sum), "nor a function that makes one"),
    "a range of a wrapper": (attach("tlr", base="sgd", gamma=5), "outside (0, 1]"),
    "a word of a flag": (attach("adamw", decay_all="yes"), "decay_all"),
    "a precision": (attach("adamw", state_dtype="int9"), "int9"),
    "the trainer second": (lambda trainer: hf_optim.attach("smaran", trainer), "attach takes the trainer first"),
    "a class for the trainer": (lambda trainer: hf_optim.attach(type(trainer), "smaran"), "a Trainer that is built"),
    "no rate": (attach("smaran", lr=None), "lr must be a number"),
    "number as a name": (attach(3), "int"),
    "a class that is no optimizer": (attach(torch.nn.Linear), "the class Linear"),
    "text as a rate": (attach("smaran", lr="0.1"), "lr"),
    "text as betas": (attach("adamw_agr", betas="(0.9,0.99)"), "betas"),
    "negative rate": (attach("smaran", lr=-0.1), "lr"),
    "rate not finite": (attach("smaran", lr=float("nan")), "lr"),
    "gamma out of range": (attach("smaran", gamma=1.5), "gamma"),
    "flag as a number": (attach("sps", c=True), "c"),
    "number as a closure": (attach("torch.optim:LBFGS", closure=1), "closure"),
    "number as a base": (attach("tlr", base=3), "name"),
    "negative gamma of a schedule": (attach("smaran", schedule={"name": "step", "gamma": -1}), "gamma"),
    "list as a schedule": (attach("smaran", schedule=["cosine"]), "name"),
    "interval of zero": (monitor(every=0), "every"),
    "text as a flag": (monitor(per_layer="yes"), "per_layer"),
    "epoch of no steps": (session(steps_per_epoch=0), "steps_per_epoch"),
    "number as a session's closure": (session(closure=1), "closure"),
    # would be ignored
    "base without a wrapper": (attach("smaran", base="sgd"), "base"),
    "base missing": (attach("tlr"), "base"),
    "name of a fixed base": (attach("tlr_adamw", base={"name": "sgd"}), "base"),
    "closure declined": (attach("torch.optim:LBFGS", closure=False), "closure"),
    "steps and interval": (attach("tlr", base="sgd", interval=2, steps_per_epoch=4), "not both"),
    "transform of a line search": (attach("sls", grad_transform="agr"), "grad_transform"),
    "rate of a line search": (attach("sls", lr=0.1), "lr"),
    "optim_args of TrainingArguments": (attach("smaran", optim_args="gamma=0.9"), "optim_args"),
    "two transforms": (attach("adamw_agr", grad_transform="centralize"), "grad_transform"),
    "two schedules": (lambda t: (_set(t, "cosine"), hf_optim.attach(t, "smaran", schedule="step")), "two schedules"),
}


def _set(trainer: Any, schedule: str) -> None:
    trainer.args.lr_scheduler_type = schedule


def test_there_are_forty():
    assert len(MISTAKES) >= 40


#: what no reader of the arguments can know before the run is set up
LATE = {"optim_args of TrainingArguments", "closure declined"}


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m not in LATE])
def test_a_mistake_is_found_where_it_is_made_and_not_when_training_begins(tmp_path, mistake):
    with pytest.raises(hf_optim.UserError):
        MISTAKES[mistake][0](make(tmp_path, n=4, lr_scheduler_type="linear"))


@pytest.mark.parametrize("name", ["smaran", "tlr_adamw", "muon"])
def test_looking_for_mistakes_draws_none_of_the_runs_random_numbers(tmp_path, name):
    trainer = make(tmp_path, n=4)
    before = torch.get_rng_state()
    hf_optim.attach(trainer, name)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(tmp_path, mistake):
    do, word = MISTAKES[mistake]
    trainer = make(tmp_path, n=4, lr_scheduler_type="linear")
    before = weights(trainer)
    with pytest.raises(hf_optim.UserError) as error:
        do(trainer)
        trainer.train()
    message = str(error.value)
    assert word in message and "\n" not in message and len(message) < 400, message
    assert torch.equal(before, weights(trainer))


def test_a_rule_without_the_tensors_it_is_made_for_says_so(tmp_path):
    """Normalised gradients are for matrices; of a model that trains its biases only there are none."""
    trainer = make(tmp_path, n=4)
    for name, p in trainer.model.named_parameters():
        p.requires_grad_("bias" in name)
    hf_optim.attach(trainer, "adamw_agr")
    with pytest.raises(hf_optim.UserError, match="agr finds no tensor to transform"):
        trainer.train()


@pytest.mark.parametrize(("interval", "moves"), [(6, False), (4, True)])
def test_a_run_too_short_for_a_learned_rate_says_so(tmp_path, caplog, interval, moves):
    """11 steps: a rate that first changes after 12 never does, and one after 8 does."""
    trainer = make(tmp_path, n=44)
    hf_optim.attach(trainer, "tlr", base={"name": "sgd", "lr": 0.05}, interval=interval)
    with caplog.at_level("WARNING", logger="hf_optim"):
        trainer.train()
    said = [r.message for r in caplog.records if "stays what it is" in r.message]
    scale = hf_optim.hub.feed.unwrapped(trainer.optimizer).param_groups[0]["hf_optim_lr_scale"]
    assert (scale != 1, not said) == (moves, moves)


@pytest.mark.parametrize(
    ("at", "warmup", "late"),
    [([5, 30], 11, "warmup 11, at 30"), ([0.5, 10], 0.1, None)],
    ids=["epochs for steps", "within the run"],
)
def test_a_schedule_that_the_run_ends_before_says_so(tmp_path, caplog, at, warmup, late):
    trainer = make(tmp_path, n=44, lr_scheduler_type="linear")
    hf_optim.attach(trainer, "sgd", lr=0.1, schedule={"name": "multistep", "at": at, "warmup": warmup})
    with caplog.at_level("WARNING", logger="hf_optim"):
        trainer.train()
    said = [r.message for r in caplog.records if "the run ends after 11 steps" in r.message]
    assert (len(said) == 1 and f"{late}: what is below 1" in said[0]) if late else not said


@pytest.mark.parametrize(
    ("schedule", "told"), [("linear", True), ("cosine", True), ("constant", False), ("constant_with_warmup", False)]
)
def test_an_average_beside_a_schedule_says_so(tmp_path, caplog, schedule, told):
    trainer = make(tmp_path, n=8, lr_scheduler_type=schedule)
    hf_optim.attach(trainer, "tlr", base={"name": "schedule_free_sgd", "lr": 0.1})
    with caplog.at_level("WARNING", logger="hf_optim"):
        trainer.train()
    said = [r.message for r in caplog.records if "averages in a schedule's place" in r.message]
    assert len(said) == told


def test_every_trained_parameter_is_claimed_once(tmp_path):
    """Frozen ones by none; shared ones once."""
    trainer = make(tmp_path, n=4)
    trainer.model.tied = trainer.model.first
    trainer.model.last.bias.requires_grad_(False)
    attachment = hf_optim.attach(trainer, "smaran")
    trainer.train()
    claimed = [id(p) for g in attachment.optimizer.param_groups for p in g["params"]]
    assert sorted(claimed) == sorted({id(p) for p in trainer.model.parameters() if p.requires_grad})
